//! Combines the layers of a configuration: defaults, file, environment, `--set`; a later one takes precedence.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::Path;
use std::{fs, io};

use super::Config;
use super::check::{Surroundings, check};
use super::error::{ConfigError, ConfigErrors, Problem};
use super::raw::Raw;
use super::setting::Origin;

/// The largest configuration or secret file; a larger one is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The configuration from a file (if any), the environment and the arguments of `--set`.
///
/// Of the environment, only names that begin with `LLM_BRIDGE__` count; [`environment`] returns this process' own.
///
/// # Errors
/// All errors at once, which lead to exit status 78.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    sets: &[String],
) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let raw = gather(file, environment, sets, &mut errors);
    let around = Surroundings { hostname: &hostname(), read_secret: &read };
    let config = check(&raw, &around, &mut errors);
    if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
}

/// The keys (`section.key`) that these sources set, whatever their values: all others have their defaults.
pub(crate) fn given(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    sets: &[String],
) -> BTreeSet<String> {
    gather(file, environment, sets, &mut Vec::new()).into_names()
}

fn gather(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    sets: &[String],
    errors: &mut Vec<ConfigError>,
) -> Raw {
    let mut raw = Raw::default();
    if let Some(path) = file {
        match read(path) {
            Ok(text) => raw.add_file(path, &text, errors),
            Err(error) => {
                let origin = Origin::File { path: path.into(), line: None };
                errors.push(ConfigError::new(origin, "", Problem::Unreadable(error.to_string())));
            }
        }
    }
    let mut variables: Vec<(String, String)> = environment.collect();
    variables.sort();
    for (name, text) in &variables {
        raw.add_variable(name, text, errors);
    }
    for argument in sets {
        raw.add_argument(argument, errors);
    }
    raw
}

/// This process' environment. Text that is not Unicode is converted as far as possible, not skipped.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |text: OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

impl Config {
    /// The defaults, with the instance id of a host named `localhost`.
    #[must_use]
    pub fn defaults() -> Self {
        let no_secrets = |_: &Path| Err(io::ErrorKind::NotFound.into());
        let around = Surroundings { hostname: "localhost", read_secret: &no_secrets };
        let mut errors = Vec::new();
        let config = check(&Raw::default(), &around, &mut errors);
        debug_assert!(errors.is_empty(), "the defaults are within their own bounds: {errors:?}");
        config
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(text)
}

/// This machine's name, with characters that an instance id cannot have replaced by dashes.
pub(crate) fn hostname() -> String {
    let mut buffer = [0_u8; 256];
    // SAFETY: the pointer and the length are those of `buffer`, which outlives the call.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let name = if result == 0 { buffer.split(|byte| *byte == 0).next().unwrap_or_default() } else { b"" };
    if name.is_empty() {
        return "localhost".to_owned();
    }
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    name.iter().map(|byte| if allowed(byte) { char::from(*byte) } else { '-' }).collect()
}
