//! Measured limits of the machine.

use std::hint::black_box;
use std::time::Instant;

use hybridnorm_kernels::elementwise::add_to;
use hybridnorm_kernels::floats::FloatsMut;
use hybridnorm_kernels::matmul::{Matrix, MatrixMut, Packed, Precision, multiply};
use rayon::prelude::*;

/// M, N and K of the GEMM benchmark.
const SIDE: usize = 1024;

/// Measures the peak of 1024 × 1024 × 1024 matmuls of single-precision operands on the current threads, in GFLOP/s: the
/// best of several repetitions, since slower ones were affected by other load.
pub fn sgemm_gflops() -> f64 {
    gemm_gflops(Precision::F32)
}

/// Measures the peak as [`sgemm_gflops`] does, of bfloat16 operands and single-precision sums.
pub fn bf16_gemm_gflops() -> f64 {
    gemm_gflops(Precision::Bf16)
}

fn gemm_gflops(precision: Precision) -> f64 {
    let a: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 7) as f32).collect();
    let b: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 5) as f32).collect();
    let mut c = vec![0.0; SIDE * SIDE];
    let flop = 2.0 * (SIDE as f64).powi(3);
    let b = Packed::new(precision, Matrix::new(&b, SIDE, SIDE));
    let mut left = vec![0.0f32; FloatsMut::scratch_len(precision, SIDE * SIDE)];
    let (mut left, _) = FloatsMut::of_scratch(precision, &mut left, SIDE * SIDE);
    left.reborrow().copy_from(&a);
    let left = left.as_floats();
    let rates = (0..16).map(|_| {
        let started = Instant::now();
        multiply(
            Matrix::new(left, SIDE, SIDE),
            &b,
            MatrixMut::new(&mut c, SIDE, SIDE),
            1.0,
        );
        black_box(&c);
        flop / started.elapsed().as_secs_f64() / 1e9
    });
    rates.fold(0.0, f64::max)
}

/// Measures the memory read bandwidth with all threads, on a buffer larger than the caches, in bytes per second.
pub fn read_bandwidth() -> f64 {
    BandwidthBenchmark::new().read()
}

/// Benchmark of memory bandwidth, on a buffer larger than any cache.
pub struct BandwidthBenchmark(Vec<f32>);

impl BandwidthBenchmark {
    /// Elements of each half. Not a whole number of pages: two streams a multiple of the page size apart would map to
    /// the same cache sets and memory banks.
    const HALF: usize = 33_004_032;
    /// Bytes of the buffer.
    pub const BYTES: usize = 2 * Self::HALF * size_of::<f32>();
    /// Elements per task.
    const CHUNK: usize = 1 << 16;
    /// Number of repetitions; the fastest is reported, since slower ones were affected by other load.
    const REPETITIONS: usize = 5;

    /// Allocates the buffer.
    #[expect(clippy::new_without_default, reason = "takes a lot of memory")]
    pub fn new() -> Self {
        Self(vec![1.0; 2 * Self::HALF])
    }

    /// Measures the read bandwidth with all threads, in bytes per second.
    pub fn read(&self) -> f64 {
        best(Self::REPETITIONS, Self::BYTES, || {
            let chunks = self.0.par_chunks(Self::CHUNK);
            let sum: f32 = chunks
                .map(|chunk| {
                    let mut lanes = [0.0f32; 64];
                    for part in chunk.chunks_exact(64) {
                        for (lane, x) in lanes.iter_mut().zip(part) {
                            *lane += x;
                        }
                    }
                    lanes.iter().sum::<f32>()
                })
                .sum();
            black_box(sum);
        })
    }

    /// Measures the bandwidth of `y = y + x` with all threads, in bytes per second: two elements read and one written
    /// per addition.
    pub fn read_write(&mut self) -> f64 {
        let (y, x) = self.0.split_at_mut(Self::HALF);
        best(Self::REPETITIONS, Self::BYTES / 2 * 3, || {
            add_to(&*x, &mut *y);
            black_box(&y);
        })
    }
}

fn best(repetitions: usize, bytes: usize, mut pass: impl FnMut()) -> f64 {
    (0..repetitions)
        .map(|_| {
            let started = Instant::now();
            pass();
            bytes as f64 / started.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}

/// Returns the page faults of this process so far, where the system reports them (Linux).
pub fn page_faults() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces; minflt is the 8th field after it, majflt the 10th.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(field(7)? + field(9)?)
}
