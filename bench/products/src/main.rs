//! The matrix products of a training step by `gemm`, `faer` and `matrixmultiply`, at the shapes that
//! occur: which of them serves which product best?
//!
//! ```sh
//! MATMUL_NUM_THREADS=2 cargo run --release --target-dir target/bench-products --manifest-path bench/products/Cargo.toml
//! ```
//!
//! All take turns, several rounds in one run; a cell is the best of them in GFLOP/s.

use std::time::Instant;

const THREADS: usize = 2;
const ROUNDS: usize = 12;

/// A linear layer of `inputs` to `outputs` over `rows`.
struct Layer {
    name: &'static str,
    outputs: usize,
    inputs: usize,
    rows: usize,
}

/// The three bench shapes of docs/performance.md.
const LAYERS: [Layer; 12] = [
    layer("d128 qkv", 384, 128, 2048),
    layer("d128 gate/up", 688, 128, 2048),
    layer("d128 down", 128, 344, 2048),
    layer("d128 head", 4096, 128, 512),
    layer("d384 qkv", 1152, 384, 2048),
    layer("d384 gate/up", 2048, 384, 2048),
    layer("d384 down", 384, 1024, 2048),
    layer("d384 head", 8192, 384, 512),
    layer("d768 qkv", 2304, 768, 1024),
    layer("d768 gate/up", 4096, 768, 1024),
    layer("d768 down", 768, 2048, 1024),
    layer("1024 cubed", 1024, 1024, 1024),
];

const fn layer(name: &'static str, outputs: usize, inputs: usize, rows: usize) -> Layer {
    Layer {
        name,
        outputs,
        inputs,
        rows,
    }
}

/// A matrix whose element (i, j) lies at `i * down + j * right`.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    down: isize,
    right: isize,
}

impl<'a> View<'a> {
    fn of(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns);
        View {
            data,
            rows,
            columns,
            down: columns as isize,
            right: 1,
        }
    }

    fn transposed(self) -> Self {
        View {
            rows: self.columns,
            columns: self.rows,
            down: self.right,
            right: self.down,
            ..self
        }
    }
}

type Product = fn(View, View, &mut [f32]);

const CRATES: [(&str, Product); 3] = [
    ("gemm", by_gemm),
    ("faer", by_faer),
    ("matrixmultiply", by_matrixmultiply),
];

fn by_gemm(a: View, b: View, c: &mut [f32]) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    // SAFETY: the views cover their slices, and c is (m, n).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.data.as_ptr(),
            a.right,
            a.down,
            b.data.as_ptr(),
            b.right,
            b.down,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(THREADS),
        );
    }
}

fn by_faer(a: View, b: View, c: &mut [f32]) {
    use faer::{Accum, MatMut, MatRef, Par};
    fn view(x: View<'_>) -> MatRef<'_, f32> {
        match x.right {
            1 => MatRef::from_row_major_slice(x.data, x.rows, x.columns),
            _ => MatRef::from_column_major_slice(x.data, x.rows, x.columns),
        }
    }
    let c = MatMut::from_row_major_slice_mut(c, a.rows, b.columns);
    let parallel = Par::rayon(THREADS);
    faer::linalg::matmul::matmul(c, Accum::Replace, view(a), view(b), 1.0, parallel);
}

fn by_matrixmultiply(a: View, b: View, c: &mut [f32]) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    // SAFETY: the views cover their slices, and c is (m, n).
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.data.as_ptr(),
            a.down,
            a.right,
            b.data.as_ptr(),
            b.down,
            b.right,
            0.0,
            c.as_mut_ptr(),
            n as isize,
            1,
        );
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
}

fn main() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build_global()
        .expect("the pool is not running yet");
    rayon::scope(|_| measure());
}

fn measure() {
    print!("{:14} {:16}", "layer", "product");
    for (name, _) in CRATES {
        print!(" {name:>15}");
    }
    println!();
    for Layer {
        name,
        outputs,
        inputs,
        rows,
    } in LAYERS
    {
        let (x, w, dy) = (
            values(rows * inputs),
            values(outputs * inputs),
            values(rows * outputs),
        );
        let x = View::of(&x, rows, inputs);
        let w = View::of(&w, outputs, inputs);
        let dy = View::of(&dy, rows, outputs);
        for (product, a, b) in [
            ("forward", x, w.transposed()),
            ("backward input", dy, w),
            ("backward weight", dy.transposed(), x),
        ] {
            let mut best = [f64::INFINITY; CRATES.len()];
            let mut found = vec![vec![0.0f32; a.rows * b.columns]; CRATES.len()];
            for _ in 0..ROUNDS {
                for (i, (_, multiply)) in CRATES.iter().enumerate() {
                    let started = Instant::now();
                    multiply(a, b, &mut found[i]);
                    best[i] = best[i].min(started.elapsed().as_secs_f64());
                }
            }
            for other in &found[1..] {
                let same = other
                    .iter()
                    .zip(&found[0])
                    .all(|(a, b)| (a - b).abs() < 1e-2);
                assert!(same, "{name} {product}: the crates disagree");
            }
            let work = 2.0 * (a.rows * a.columns * b.columns) as f64;
            print!("{name:14} {product:16}");
            for seconds in best {
                print!(" {:15.0}", work / seconds / 1e9);
            }
            println!();
        }
    }
}
