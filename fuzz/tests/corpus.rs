//! Every target with the inputs of its corpus, and with inputs that are near them: the same thousand in each run, unless
//! `FUZZ_INPUTS` and `FUZZ_SEED` say other numbers.

use std::env;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Longest input, as for libFuzzer in `fuzz/run`.
const LONGEST: usize = 4096;

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % limit.max(1) as u64) as usize
    }

    /// Some changes of an input: bytes, a piece that goes, a piece of another input that comes.
    fn near(&mut self, corpus: &[Vec<u8>], input: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(4) {
                0 | 1 => {
                    let value = [0, 1, 0x7f, 0x80, 0xff, self.below(256) as u8][self.below(6)];
                    bytes.get_mut(at).into_iter().for_each(|byte| *byte = value);
                }
                2 => drop(bytes.drain(at..(at + self.below(16)).min(bytes.len()))),
                _ => {
                    let other = &corpus[self.below(corpus.len())];
                    let begin = self.below(other.len());
                    let piece = &other[begin..(begin + self.below(64)).min(other.len())];
                    drop(bytes.splice(at..at, piece.iter().copied()));
                }
            }
        }
        bytes.truncate(LONGEST);
        bytes
    }
}

/// A number that the environment gives, or this one.
fn given(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Files of a target, by name.
fn corpus(name: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder().join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Tries all files, then inputs that are near them.
fn try_all(name: &str) {
    fuzz::bound_process();
    let target = fuzz::target(name).unwrap();
    let files = corpus(name);
    let inputs: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    for (file, input) in files.iter().zip(&inputs) {
        assert!(catch_unwind(|| target(input)).is_ok(), "{} breaks something", file.display());
    }
    let mut random = Random(given("FUZZ_SEED", 1));
    for number in 0..given("FUZZ_INPUTS", 1000) {
        let input = random.near(&inputs, &inputs[number as usize % inputs.len()]);
        assert!(catch_unwind(|| target(&input)).is_ok(), "{name}, {number}: an input breaks something: {input:?}");
    }
}

#[test]
fn rings() {
    try_all("rings");
}

#[test]
fn transport() {
    try_all("transport");
}

#[test]
fn files() {
    try_all("files");
}

#[test]
fn streams() {
    try_all("streams");
}

#[test]
fn frames() {
    try_all("frames");
}

#[test]
fn agent() {
    try_all("agent");
}

#[test]
fn messages() {
    try_all("messages");
}

#[test]
fn nodes() {
    try_all("nodes");
}

#[test]
fn config() {
    try_all("config");
}

#[test]
fn words() {
    try_all("words");
}

/// None is left out above, and no folder belongs to nobody.
#[test]
fn every_folder_belongs_to_a_target_and_is_small() {
    let mut folders: Vec<_> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    folders.sort();
    let mut names = fuzz::TARGETS.map(|(name, _)| name);
    names.sort();
    assert_eq!(folders, names);
    let bytes: u64 = names.iter().flat_map(|name| corpus(name)).map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes < 300 << 10, "the corpus has {bytes} bytes: minimise it (docs/fuzzing.md)");
}
