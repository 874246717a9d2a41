//! Inputs mutated with a fixed seed, for runs without a fuzzer.

/// A small generator of numbers (xorshift64*), so that a failure can be reproduced.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).expect("33 bits are left")
            % end.max(1)
    }
}

/// Pieces of JSON that a mutation inserts.
const TOKENS: [&str; 20] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "null",
    "0",
    "-1",
    "18446744073709551616",
    "1e9",
    "\\",
    "\\u",
    r"\ud800",
    "true",
    r#""index":"#,
    r#""type":"#,
    r#""delta":"#,
    "\u{e9}",
];

/// One of the seeds, with up to three changes.
pub(crate) fn mutate(numbers: &mut Numbers, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[numbers.below(seeds.len())].clone();
    for _ in 0..numbers.below(4) {
        let (from, to) = (numbers.below(bytes.len() + 1), numbers.below(bytes.len() + 1));
        let (from, to) = (from.min(to), from.max(to));
        match numbers.below(6) {
            0 => drop(bytes.drain(from..to.min(from + 12))),
            1 => drop(bytes.splice(from..from, TOKENS[numbers.below(TOKENS.len())].bytes())),
            2 => {
                let piece = bytes[from..to].to_vec();
                let at = numbers.below(bytes.len() + 1);
                drop(bytes.splice(at..at, piece));
            }
            3 if from < bytes.len() => bytes[from] = u8::try_from(numbers.below(256)).unwrap_or(u8::MAX),
            4 => {
                let other = &seeds[numbers.below(seeds.len())];
                let at = numbers.below(other.len() + 1);
                bytes.truncate(from);
                bytes.extend_from_slice(&other[at..]);
            }
            _ => drop(bytes.splice(from..to.min(from + 8), TOKENS[numbers.below(TOKENS.len())].bytes())),
        }
    }
    bytes
}
