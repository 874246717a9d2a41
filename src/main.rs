//! The program: its arguments in, its exit status out.

use std::process::ExitCode;

fn main() -> ExitCode {
    llm_bridge::cli::run(std::env::args_os())
}
