//! The matrix products of a training step by `gemm`, `faer` and `matrixmultiply` (as `ndarray` calls
//! it), and by the kernels' linear layers, which call `gemm`: who is best at which shape?
//!
//! ```sh
//! MATMUL_NUM_THREADS=2 cargo run --release --target-dir target/bench-products --manifest-path bench/products/Cargo.toml
//! ```
//!
//! All take turns, several rounds in one run; a cell is the best of them in GFLOP/s.
#![forbid(unsafe_code)]

use std::time::Instant;

use hybridnorm_kernels::{gemm, linear};

const THREADS: usize = 2;
const ROUNDS: usize = 12;

/// Linear layers of the shapes in docs/performance.md: name, outputs, inputs, rows.
const LAYERS: [(&str, usize, usize, usize); 12] = [
    ("d128 qkv", 384, 128, 2048),
    ("d128 gate/up", 688, 128, 2048),
    ("d128 down", 128, 344, 2048),
    ("d128 head", 4096, 128, 512),
    ("d384 qkv", 1152, 384, 2048),
    ("d384 gate/up", 2048, 384, 2048),
    ("d384 down", 384, 1024, 2048),
    ("d384 head", 8192, 384, 512),
    ("d768 qkv", 2304, 768, 1024),
    ("d768 gate/up", 4096, 768, 1024),
    ("d768 down", 768, 2048, 1024),
    ("1024 cubed", 1024, 1024, 1024),
];

/// A matrix by rows, or the transpose of one.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> View<'a> {
    fn of(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self {
            data,
            rows,
            columns,
            transposed: false,
        }
    }

    fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            transposed: !self.transposed,
            ..self
        }
    }
}

fn by_gemm(a: View, b: View, c: &mut [f32]) {
    let strides = |x: View| match x.transposed {
        true => (1, x.rows),
        false => (x.columns, 1),
    };
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let (a_strides, b_strides) = (strides(a), strides(b));
    gemm::matmul(
        m,
        n,
        k,
        a.data,
        a_strides,
        b.data,
        b_strides,
        c,
        (n, 1),
        1.0,
        false,
        true,
    );
}

fn by_faer(a: View, b: View, c: &mut [f32]) {
    use faer::{Accum, MatMut, MatRef, Par};
    fn view(x: View<'_>) -> MatRef<'_, f32> {
        match x.transposed {
            true => MatRef::from_column_major_slice(x.data, x.rows, x.columns),
            false => MatRef::from_row_major_slice(x.data, x.rows, x.columns),
        }
    }
    let c = MatMut::from_row_major_slice_mut(c, a.rows, b.columns);
    let parallel = Par::rayon(THREADS);
    faer::linalg::matmul::matmul(c, Accum::Replace, view(a), view(b), 1.0, parallel);
}

fn by_ndarray(a: View, b: View, c: &mut [f32]) {
    use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};
    fn view(x: View<'_>) -> ArrayView2<'_, f32> {
        let shape = (x.rows, x.columns).set_f(x.transposed);
        ArrayView2::from_shape(shape, x.data).expect("as long as its shape")
    }
    let shape = (a.rows, b.columns);
    let mut c = ArrayViewMut2::from_shape(shape, c).expect("as long as its shape");
    ndarray::linalg::general_mat_mul(1.0, &view(a), &view(b), 0.0, &mut c);
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
    println!(
        "{:14} {:16} {:>10} {:>10} {:>15} {:>14}",
        "layer", "product", "gemm", "faer", "matrixmultiply", "linear layer"
    );
    for (name, outputs, inputs, rows) in LAYERS {
        let (x, w, dy) = (
            values(rows * inputs),
            values(outputs * inputs),
            values(rows * outputs),
        );
        let (x_view, w_view) = (View::of(&x, rows, inputs), View::of(&w, outputs, inputs));
        let dy_view = View::of(&dy, rows, outputs);
        let forward = |y: &mut [f32]| linear::forward(&x, &w, y, inputs, outputs);
        let input = |dx: &mut [f32]| linear::backward_input(&dy, &w, dx, inputs, outputs);
        let weight = |dw: &mut [f32]| linear::backward_weight(&dy, &x, dw, inputs, outputs);
        compare(name, "forward", x_view, w_view.t(), &forward);
        compare(name, "backward input", dy_view, w_view, &input);
        compare(name, "backward weight", dy_view.t(), x_view, &weight);
    }
}

/// Prints how fast `a b` is, and `layer`, which is the same.
fn compare(name: &str, product: &str, a: View, b: View, layer: &dyn Fn(&mut [f32])) {
    let ways: [&dyn Fn(&mut [f32]); 4] = [
        &|c| by_gemm(a, b, c),
        &|c| by_faer(a, b, c),
        &|c| by_ndarray(a, b, c),
        layer,
    ];
    let mut best = [f64::INFINITY; 4];
    let mut found = vec![vec![0.0f32; a.rows * b.columns]; 4];
    for _ in 0..ROUNDS {
        for (i, multiply) in ways.iter().enumerate() {
            let started = Instant::now();
            multiply(&mut found[i]);
            best[i] = best[i].min(started.elapsed().as_secs_f64());
        }
    }
    for other in &found[1..] {
        let same = other
            .iter()
            .zip(&found[0])
            .all(|(a, b)| (a - b).abs() < 1e-2);
        assert!(same, "{name} {product}: the results differ");
    }
    let work = 2.0 * (a.rows * a.columns * b.columns) as f64;
    let [gemm, faer, matrixmultiply, layer] = best.map(|seconds| work / seconds / 1e9);
    println!("{name:14} {product:16} {gemm:10.0} {faer:10.0} {matrixmultiply:15.0} {layer:14.0}");
}
