//! The program: parses its arguments and returns its exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    llm_bridge::cli::run(std::env::args_os())
}
