//! What kernel tests share: the tiers, seeded data, guarded outputs, frozen inputs, bounded comparison.

use gpt_oss_puzzle::kernels::cpu::{Cpu, Isa};
use gpt_oss_puzzle::kernels::reference::Bounded;
use gpt_oss_puzzle::kernels::{ExpertShape, Experts};
use half::bf16;
use std::io::Write;
use std::ops::Deref;
use std::sync::LazyLock;

/// Every tier of this machine on a pool of three threads: an odd number, more than most pieces.
pub fn tiers() -> &'static [Cpu] {
    static TIERS: LazyLock<Vec<Cpu>> = LazyLock::new(|| on_threads(3));
    &TIERS
}

/// Every tier of this machine on `threads` threads.
pub fn on_threads(threads: usize) -> Vec<Cpu> {
    let required = std::env::var("REQUIRE_ISA").ok();
    let required: Option<Isa> = required.map(|isa| isa.parse().expect("REQUIRE_ISA"));
    let tier = |isa| {
        let cpu = Cpu::with_isa(isa, threads);
        if cpu.is_none() {
            // Not eprintln!, which the test harness keeps to itself while a test passes.
            let line = format!("NOT TESTED: this machine lacks {isa:?}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            assert!(required.is_none_or(|required| required < isa), "{isa:?} is required");
        }
        cpu
    };
    Isa::ALL.into_iter().filter_map(tier).collect()
}

/// A small seeded generator (splitmix64): the same data on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in ±1, both signs.
    pub fn f32(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.f32()).collect()
    }

    pub fn bf16s(&mut self, n: usize) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(self.f32())).collect()
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.bits() as u8).collect()
    }

    /// E8M0 scales around 2^-6, so that sums stay near 1.
    pub fn scales(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| 117 + self.below(8) as u8).collect()
    }
}

/// An input that begins `offset` elements into its allocation and must come out of the test unchanged.
pub struct Input<T: Copy> {
    data: Vec<T>,
    before: Vec<u8>,
    offset: usize,
}

impl<T: Copy> Input<T> {
    pub fn new(values: Vec<T>, offset: usize) -> Input<T> {
        let mut data: Vec<T> = values.iter().copied().cycle().take(offset).collect();
        let offset = data.len();
        data.extend(values);
        let before = raw(&data);
        Input { data, before, offset }
    }
}

/// The bytes of plain values, so that NaN and −0 compare too.
fn raw<T: Copy>(data: &[T]) -> Vec<u8> {
    // SAFETY: used with f32, bf16, u8, u32 and u64 only, which have no padding.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }.to_vec()
}

impl<T: Copy> Deref for Input<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[self.offset..]
    }
}

impl<T: Copy> Drop for Input<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(raw(&self.data) == self.before, "a kernel wrote to its input");
        }
    }
}

/// Runs `f` on `n` NaNs between canaries, `offset` elements into the allocation.
pub fn guarded(n: usize, offset: usize, f: impl FnOnce(&mut [f32])) -> Vec<f32> {
    const CANARY: u32 = 0x7fc0_beef;
    let (before, after) = (32 + offset, 32);
    let mut buffer = vec![f32::from_bits(CANARY); before + n + after];
    f(&mut buffer[before..before + n]);
    let intact = |x: &f32| x.to_bits() == CANARY;
    assert!(buffer[..before].iter().all(intact), "wrote before its output");
    assert!(buffer[before + n..].iter().all(intact), "wrote behind its output");
    buffer[before..before + n].to_vec()
}

/// `|got − want| ≤ c · n · eps · terms`, and a little for results that are flushed to zero.
pub fn assert_bounded(got: &[f32], want: &Bounded, c: f64, n: usize, what: &str) {
    assert_eq!(got.len(), want.value.len(), "{what}: length");
    for (i, (&got, (&want, &terms))) in
        got.iter().zip(want.value.iter().zip(&want.terms)).enumerate()
    {
        let tolerance = c * n as f64 * f64::from(f32::EPSILON) * terms + 1e-37;
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance, "{what}: [{i}] is {got}, want {want} ± {tolerance}");
    }
}

pub fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.to_bits() == want.to_bits(), "{what}: [{i}] is {got}, want {want}");
    }
}

/// Owned expert matrices in either layout.
pub enum Weights {
    Mxfp4 { blocks: Input<u8>, scales: Input<u8> },
    Bf16(Input<bf16>),
}

impl Weights {
    pub fn random(rng: &mut Rng, shape: ExpertShape, mxfp4: bool, offset: usize) -> Weights {
        let n = shape.experts * shape.rows * shape.cols;
        if mxfp4 {
            let blocks = Input::new(rng.bytes(n / 2), offset);
            Weights::Mxfp4 { blocks, scales: Input::new(rng.scales(n / 32), offset) }
        } else {
            Weights::Bf16(Input::new(rng.bf16s(n), offset))
        }
    }

    pub fn view(&self) -> Experts<'_> {
        match self {
            Weights::Mxfp4 { blocks, scales } => Experts::Mxfp4 { blocks, scales },
            Weights::Bf16(w) => Experts::Bf16(w),
        }
    }
}
