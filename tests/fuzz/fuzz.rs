//! The fuzz target that `LLM_BRIDGE_FUZZ_TARGET` names, under libFuzzer. Before it begins, its seeds and its words are written
//! into the directory `LLM_BRIDGE_FUZZ_SEEDS` and the file beside it that ends in `.dict`.

#![no_main]

use std::sync::LazyLock;
use std::{env, fs};

use libfuzzer_sys::fuzz_target;
use llm_bridge::fuzzing::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var("LLM_BRIDGE_FUZZ_TARGET").unwrap_or_default();
    let known = TARGETS.map(|target| target.name).join(" ");
    *TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("LLM_BRIDGE_FUZZ_TARGET is one of {known}, not {name:?}"))
});

/// Writes the files that libFuzzer reads when it begins.
fn prepare() {
    let Ok(folder) = env::var("LLM_BRIDGE_FUZZ_SEEDS") else { return };
    fs::create_dir_all(&folder).expect("the folder of the seeds");
    for (number, seed) in (TARGET.seeds)().iter().enumerate() {
        fs::write(format!("{folder}/{number}"), seed).expect("a seed");
    }
    let escaped = |word: &str| word.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let words: String = TARGET.words.iter().map(|word| format!("\"{}\"\n", escaped(word))).collect();
    fs::write(format!("{folder}.dict"), words).expect("the words");
}

fuzz_target!(
    init: prepare(),
    |data: &[u8]| (TARGET.run)(data)
);
