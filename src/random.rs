//! Randomness, for names that nobody else gives and for jitter. Called by the shells (layer 2 and up); the core is told.

fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness to give");
    bytes
}

/// A number, each as likely as any other.
#[must_use]
pub fn number() -> u32 {
    u32::from_ne_bytes(bytes())
}

/// A name of 16 hexadecimal digits.
#[must_use]
pub fn name() -> String {
    format!("{:016x}", u64::from_ne_bytes(bytes()))
}
