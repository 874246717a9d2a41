//! Cases written for Node, with packages from npm's registry: pinned by a lock file, installed into the target
//! directory.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::command::program;
use super::ports::port_range;

/// Ports for one case: a Redis, a few daemons and proxies.
const PORTS: u16 = 32;

/// A file or folder below `tests`.
pub(crate) fn sources(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// Installs a folder's locked packages, unless that was done before. Returns the path of `node_modules`.
pub(crate) fn install(folder: &str) -> PathBuf {
    let sources = sources(folder);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let done = directory.join("installed.json");
    let lock = fs::read(sources.join("package-lock.json")).unwrap();
    if fs::read(&done).is_ok_and(|installed| installed == lock) {
        return directory;
    }
    fs::create_dir_all(&directory).unwrap();
    for file in ["package.json", "package-lock.json"] {
        fs::copy(sources.join(file), directory.join(file)).unwrap();
    }
    let arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
    let output = program("npm").args(arguments).current_dir(&directory).output();
    let output = output.expect("npm is installed; ./tests/run.sh does that");
    assert!(output.status.success(), "npm ci: {}", String::from_utf8_lossy(&output.stderr));
    fs::write(done, lock).unwrap();
    directory
}

/// Runs one case of a folder to its end, with these variables in its environment. A failure panics with the case's
/// output.
pub(crate) fn check(folder: &str, case: &str, variables: &[(&str, &OsStr)]) {
    let ports = port_range(PORTS);
    let output = program("node")
        .arg(sources("case.mjs"))
        .args([folder, case])
        .env("LLM_BRIDGE_BIN", env!("CARGO_BIN_EXE_llm-bridge"))
        .env("LLM_BRIDGE_PORTS", format!("{}..{}", ports.start, ports.end))
        .envs(variables.iter().copied())
        .output()
        .expect("node is installed; ./tests/run.sh does that");
    let message = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&message));
}

/// Checks that `listed` runs every case in a folder's files.
pub(crate) fn expect_all(folder: &str, files: &[&str], listed: &str) {
    for file in files {
        let text = fs::read_to_string(sources(folder).join(file)).unwrap();
        for line in text.lines() {
            let rest = ["export async function ", "export function ", "export const "]
                .iter()
                .find_map(|prefix| line.strip_prefix(prefix));
            let Some(name) = rest.and_then(|rest| rest.split([' ', '(']).next()) else { continue };
            assert!(listed.contains(&format!("    {name}\n")), "{file}: {name} is run by nobody");
        }
    }
}
