//! Times each kernel at the shapes of the model, on every tier of this machine, after comparing its
//! output with the scalar tier's. Weights are larger than the caches or change between calls, so the
//! GB/s stand beside the measured rate at which the same threads read memory, and the GFLOP/s beside
//! what they reach in registers with the tier's multiply-add.
//!
//! `cargo bench --bench kernels [-- [THREADS] [NAME]]`; without THREADS all cores, with NAME only the
//! cases whose name begins so.

use gpt_oss_puzzle::kernels::cpu::{Cpu, Isa, Pool};
use gpt_oss_puzzle::kernels::reference::q8_encode;
use gpt_oss_puzzle::kernels::{
    AttentionRows, Dense, ExpertShape, Experts, HeadShape, KvFormat, PAGE_TOKENS, SwigluParams,
};
use half::bf16;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const HIDDEN: usize = 2880;

/// A small seeded generator (xorshift64*).
struct Rng(u64);

impl Rng {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in ±1.
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    fn bf16s(&mut self, n: usize) -> Vec<bf16> {
        self.floats(n).into_iter().map(bf16::from_f32).collect()
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.bits() as u8).collect()
    }
}

/// Median seconds of a call, over at least five and half a second.
fn time(mut call: impl FnMut(usize)) -> f64 {
    call(0);
    let (start, mut samples) = (Instant::now(), Vec::new());
    while samples.len() < 5 || start.elapsed() < Duration::from_millis(500) {
        let begin = Instant::now();
        call(samples.len() + 1);
        samples.push(begin.elapsed().as_secs_f64());
    }
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Bytes per second at which `threads` threads together read an array far larger than the caches.
fn read_ceiling(threads: usize) -> f64 {
    let data = vec![1u64; 1 << 27];
    let (pool, total) = (Pool::new(threads), AtomicU64::new(0));
    let seconds = time(|_| {
        pool.run_chunks(data.len(), 1 << 16, |range| {
            let sum = data[range].iter().fold(0u64, |sum, x| sum.wrapping_add(*x));
            total.fetch_add(sum, Ordering::Relaxed);
        });
    });
    black_box(total.into_inner());
    size_of_val(&*data) as f64 / seconds
}

/// Operations per second in registers; nothing to compare with on the scalar tier.
fn peak(isa: Isa, threads: usize) -> f64 {
    const ROUNDS: usize = 1 << 20;
    let pool = Pool::new(threads);
    let seconds = time(|_| {
        pool.run_chunks(threads, 1, |_| match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller has this tier's kernels.
            Isa::Avx512 => unsafe { multiply_add::avx512(ROUNDS) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { multiply_add::avx2(ROUNDS) },
            _ => {}
        });
    });
    let lanes = if isa == Isa::Avx512 { 16 } else { 8 };
    if isa == Isa::Scalar { f64::NAN } else { (2 * lanes * 12 * ROUNDS * threads) as f64 / seconds }
}

#[cfg(target_arch = "x86_64")]
mod multiply_add {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// `rounds` of twelve independent multiply-adds.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(rounds: usize) {
        let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut sums = [a; 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(rounds: usize) {
        let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        let mut sums = [a; 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }
}

struct Bench {
    filter: String,
    /// Each with its operations per second in registers.
    tiers: Vec<(Cpu, f64)>,
    ceiling: f64,
}

impl Bench {
    /// `run(cpu, i, out)` is the i-th call; it reads `bytes` from memory and does `flops` operations.
    fn case(
        &self,
        name: &str,
        bytes: usize,
        flops: usize,
        outputs: usize,
        run: impl Fn(&Cpu, usize, &mut [f32]),
    ) {
        if !name.starts_with(&self.filter) {
            return;
        }
        let mut want = vec![f32::NAN; outputs];
        run(&self.tiers[0].0, 0, &mut want);
        let largest = want.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        for (cpu, peak) in &self.tiers {
            let mut got = vec![f32::NAN; outputs];
            run(cpu, 0, &mut got);
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-4 * largest, "{name} {cpu:?}: {got}, want {want}");
            }
            let seconds = time(|i| run(cpu, i, black_box(&mut got)));
            println!(
                "{name:<28} {:<7} {:>9.3} ms {:>6.1} GB/s ({:>3.0} % of reading) {:>7.1} GFLOP/s ({:>3.0} % of peak)",
                format!("{:?}", cpu.isa()),
                seconds * 1e3,
                bytes as f64 / seconds / 1e9,
                100.0 * bytes as f64 / seconds / self.ceiling,
                flops as f64 / seconds / 1e9,
                100.0 * flops as f64 / seconds / peak,
            );
        }
    }
}

fn matmul(bench: &Bench, rng: &mut Rng) {
    const ROWS: usize = 4096;
    let w: Vec<_> = (0..8).map(|_| rng.bf16s(ROWS * HIDDEN)).collect();
    let q8: Vec<_> = w.iter().map(|w| q8_encode(w)).collect();
    for t in [1, 8, 64, 512] {
        let x = rng.floats(t * HIDDEN);
        let (name, weights) = (format!("matmul T={t}"), ROWS * HIDDEN);
        bench.case(&name, 2 * weights, 2 * t * weights, t * ROWS, |cpu, i, out| {
            cpu.matmul(out, Dense::Bf16(&w[i % w.len()]), &x, None, ROWS, HIDDEN);
        });
        let name = format!("matmul q8 T={t}");
        bench.case(&name, weights * 34 / 32, 2 * t * weights, t * ROWS, |cpu, i, out| {
            let (quants, scales) = &q8[i % q8.len()];
            cpu.matmul(out, Dense::Q8 { quants, scales }, &x, None, ROWS, HIDDEN);
        });
    }
}

fn experts(bench: &Bench, rng: &mut Rng) {
    const EXPERTS: usize = 32;
    const K: usize = 4;
    let swiglu = SwigluParams { alpha: 1.702, limit: 7.0 };
    for (name, rows) in [("gate_up", 2 * HIDDEN), ("down", HIDDEN)] {
        let shape = ExpertShape { experts: EXPERTS, rows, cols: HIDDEN };
        let weights = rows * HIDDEN;
        let blocks = rng.bytes(EXPERTS * weights / 2);
        let scales = vec![118; EXPERTS * weights / 32];
        let w = Experts::Mxfp4 { blocks: &blocks, scales: &scales };
        let bias = rng.bf16s(EXPERTS * rows);
        for t in [1, 8, 64, 512] {
            let x = rng.floats(t * K * HIDDEN);
            let routes: Vec<u32> = (0..t * K + EXPERTS).map(|p| (p % EXPERTS) as u32).collect();
            let (name, used) = (format!("moe {name} T={t}"), EXPERTS.min(t * K));
            let (bytes, flops) = (used * (weights / 2 + weights / 32), 2 * t * K * weights);
            let outputs = if rows == HIDDEN { t * HIDDEN } else { t * K * HIDDEN };
            bench.case(&name, bytes, flops, outputs, |cpu, i, out| {
                // Each call has other experts: few tokens do not find theirs in the cache.
                let routes = &routes[K * i % EXPERTS..][..t * K];
                if rows == HIDDEN {
                    cpu.moe_down(out, w, &bias, shape, &x, routes, &x[..t * K], K);
                } else {
                    let x = &x[..t * HIDDEN];
                    cpu.moe_gate_up(out, w, &bias, shape, x, routes, K, swiglu);
                }
            });
        }
    }
}

fn attention(bench: &Bench, rng: &mut Rng) {
    const DEPTH: usize = 4096;
    const SEQUENCES: usize = 8;
    let heads = HeadShape { q_heads: 64, kv_heads: 8, head_dim: 64 };
    let (sinks, width) = (rng.floats(heads.q_heads), heads.kv_heads * heads.head_dim);
    let per_sequence = (DEPTH / PAGE_TOKENS) as u32;
    let all: Vec<u32> = (0..SEQUENCES as u32 * per_sequence).collect();
    let tables: Vec<&[u32]> = all.chunks_exact(per_sequence as usize).collect();
    let (k, v) = (rng.floats(DEPTH * width), rng.floats(DEPTH * width));
    let slots: Vec<u64> = (0..DEPTH as u64).collect();
    for format in [KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8 { k_scale: 0.01, v_scale: 0.01 }] {
        let words = heads.page_elements() * format.element_bytes() / 4;
        let mut pages = vec![0; all.len() * words];
        for pages in pages.chunks_exact_mut(per_sequence as usize * words) {
            bench.tiers[0].0.kv_write(pages, &k, &v, &slots, heads, format);
        }
        for t in [1, 64] {
            let positions: Vec<u32> = (DEPTH - t..DEPTH).map(|p| p as u32).collect();
            let q = rng.floats(t * heads.q_heads * heads.head_dim);
            let (bytes, flops) = (2 * DEPTH * width * format.element_bytes(), 4 * DEPTH * q.len());
            let name = format!("attention {:.4} T={t}", format!("{format:?}"));
            bench.case(&name, bytes, flops, q.len(), |cpu, i, out| {
                let (positions, sequences) = (&positions[..], &vec![(i % SEQUENCES) as u32; t][..]);
                let page_tables = &tables[..];
                let rows = AttentionRows { positions, sequences, page_tables, window: None };
                cpu.attention(out, &q, &pages, &sinks, rows, heads, format, 0.125);
            });
        }
    }
}

fn main() {
    // `cargo bench` adds an argument of its own, --bench.
    let (mut threads, mut filter) = (0, String::new());
    for argument in std::env::args().skip(1).filter(|a| !a.starts_with('-')) {
        argument.parse().map_or_else(|_| filter = argument, |number| threads = number);
    }
    let tiers: Vec<Cpu> = Isa::ALL.into_iter().filter_map(|i| Cpu::with_isa(i, threads)).collect();
    let threads = tiers[0].threads();
    let tiers = tiers.into_iter().map(|cpu| {
        let peak = peak(cpu.isa(), threads);
        (cpu, peak)
    });
    let tiers: Vec<(Cpu, f64)> = tiers.collect();
    for (cpu, peak) in &tiers[1..] {
        println!("{threads} threads, {:?} in registers: {:.0} GFLOP/s", cpu.isa(), peak / 1e9);
    }
    let bench = Bench { filter, tiers, ceiling: read_ceiling(threads) };
    println!("{threads} threads read memory at {:.1} GB/s", bench.ceiling / 1e9);
    let mut rng = Rng(0x5eed);
    matmul(&bench, &mut rng);
    experts(&bench, &mut rng);
    attention(&bench, &mut rng);
}
