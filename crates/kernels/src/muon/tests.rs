use super::*;
use crate::testing::{Rng, assert_all_close, assert_bit_identical_for_any_thread_count, to_f64};
use proptest::prelude::*;

const MUON: Muon = Muon {
    lr: 0.02,
    momentum: 0.95,
    nesterov: true,
    iterations: 5,
    clip_coefficient: 1.0,
};

/// `x y^T` for rows of `inner`.
fn matmul_transposed(x: &[f64], y: &[f64], inner: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
    x.chunks(inner)
        .flat_map(|x| y.chunks(inner).map(move |y| dot(x, y)))
        .collect()
}

fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns)
        .flat_map(|c| x.iter().skip(c).step_by(columns).copied())
        .collect()
}

fn l2_norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Computes the orthogonalization by definition.
fn naive(u: &[f64], columns: usize, iterations: usize) -> Vec<f64> {
    let rows = u.len() / columns;
    if rows == 0 {
        return Vec::new();
    }
    if rows > columns {
        return transposed(&naive(&transposed(u, columns), rows, iterations), rows);
    }
    let norm = l2_norm(u) + 1e-7;
    let mut x: Vec<f64> = u.iter().map(|u| u / norm).collect();
    for _ in 0..iterations {
        let a = matmul_transposed(&x, &x, columns);
        let square = matmul_transposed(&a, &a, rows);
        let b: Vec<f64> = a
            .iter()
            .zip(&square)
            .map(|(a, square)| -4.7750 * a + 2.0315 * square)
            .collect();
        let change = matmul_transposed(&b, &transposed(&x, columns), rows);
        for (x, change) in x.iter_mut().zip(change) {
            *x = 3.4445 * *x + change;
        }
    }
    x
}

/// Singular values by rotations of pairs of columns (one-sided Jacobi).
fn singular_values(x: &[f32], columns: usize) -> Vec<f64> {
    let long = (x.len() / columns).max(columns);
    let mut x = match long == columns {
        true => to_f64(x),
        false => transposed(&to_f64(x), columns),
    };
    let (rows, columns) = (long, x.len() / long);
    for _ in 0..30 {
        for i in 0..columns {
            for j in 0..i {
                let (head, tail) = x.split_at_mut(i * rows);
                let (x, y) = (&mut head[j * rows..][..rows], &mut tail[..rows]);
                let dot: f64 = x.iter().zip(&*y).map(|(x, y)| x * y).sum();
                let angle = 0.5 * (2.0 * dot).atan2(l2_norm(x).powi(2) - l2_norm(y).powi(2));
                let (sin, cos) = angle.sin_cos();
                for (x, y) in x.iter_mut().zip(y) {
                    (*x, *y) = (cos * *x + sin * *y, cos * *y - sin * *x);
                }
            }
        }
    }
    x.chunks(rows).map(l2_norm).collect()
}

/// Runs one step on one stack.
fn step_one(
    muon: &Muon,
    [p, m]: &mut [Vec<f32>; 2],
    g: &[f32],
    columns: usize,
    rows_per_matrix: &[usize],
    weight_decay: f64,
) -> ParameterNorms {
    let mut parameters = [ParameterState {
        p,
        g,
        m,
        columns,
        rows_per_matrix,
        weight_decay,
    }];
    let mut scratch = vec![f32::NAN; scratch_len(columns, rows_per_matrix)];
    step(muon, &mut parameters, &mut scratch)[0]
}

/// `O(g)` in single precision.
fn orthogonal(g: &[f32], columns: usize, iterations: usize) -> Vec<f32> {
    let rows = g.len() / columns;
    let muon = Muon {
        lr: -5.0 / (rows.max(columns) as f64).sqrt(),
        iterations,
        ..MUON
    };
    let mut state = [vec![0.0; g.len()], vec![0.0; g.len()]];
    step_one(&muon, &mut state, g, columns, &[rows], 0.0);
    let [o, _] = state;
    o
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn three_steps_match_the_reference(
        rows_per_matrix in prop::collection::vec(0usize..50, 1..4), columns in 1usize..50,
        nesterov in any::<bool>(), iterations in 0usize..6,
        clip_coefficient in prop::sample::select(vec![1.0f32, 0.25]),
        weight_decay in prop::sample::select(vec![0.0, 0.1]),
    ) {
        let muon = Muon { nesterov, iterations, clip_coefficient, ..MUON };
        let n = rows_per_matrix.iter().sum::<usize>() * columns;
        let mut rng = Rng::new(61);
        let mut state = [rng.normal(n), vec![0.0; n]];
        let (mut p64, mut m64) = (to_f64(&state[0]), vec![0.0; n]);
        for _ in 0..3 {
            let g = rng.normal(n);
            let before = state[0].clone();
            let norms = step_one(&muon, &mut state, &g, columns, &rows_per_matrix, weight_decay);
            let moved: Vec<f32> = before.iter().zip(&state[0]).map(|(b, p)| p - b).collect();
            for (norm, want) in [(norms.update, &moved), (norms.value, &before)] {
                prop_assert!((norm - l2_norm(&to_f64(want))).abs() <= 1e-10 * norm);
            }
            let mut start = 0;
            for &rows in &rows_per_matrix {
                let range = start..start + rows * columns;
                start = range.end;
                let mut u = Vec::new();
                for (m, &g) in m64[range.clone()].iter_mut().zip(&g[range.clone()]) {
                    let g = f64::from(clip_coefficient) * f64::from(g);
                    *m = 0.95 * *m + g;
                    u.push(if nesterov { g + 0.95 * *m } else { *m });
                }
                let size = 0.02 * 0.2 * (rows.max(columns) as f64).sqrt();
                for (p, o) in p64[range].iter_mut().zip(naive(&u, columns, iterations)) {
                    *p = *p * (1.0 - 0.02 * weight_decay) - size * o;
                }
            }
        }
        assert_all_close(&state[0], &p64, 1e-5);
        assert_all_close(&state[1], &m64, 1e-6);
    }
}

#[test]
fn shapes_around_the_tile_sizes_match_the_reference() {
    let shapes = [
        (1, 300),
        (300, 1),
        (TILE, TILE),
        (TILE + 1, 2 * TILE),
        (33, INNER + 5),
        (INNER + 44, 31),
        (INNER + 9, INNER + 30),
    ];
    for (rows, columns) in shapes {
        let g = Rng::new(62).normal(rows * columns);
        // The reference is slow.
        let iterations = if rows.min(columns) > INNER { 2 } else { 5 };
        let want = naive(&to_f64(&g), columns, iterations);
        assert_all_close(&orthogonal(&g, columns, iterations), &want, 2e-5);
    }
}

#[test]
fn singular_values_are_those_of_the_scalar_iteration() {
    for (rows, columns) in [(64, 32), (32, 64), (20, 200), (130, 70), (90, 90)] {
        let g = Rng::new(63).normal(rows * columns);
        let o = orthogonal(&g, columns, 5);
        let norm = l2_norm(&to_f64(&g)) + 1e-7;
        let iterated = |value: f64| {
            (0..5).fold(value / norm, |x, _| {
                3.4445 * x - 4.7750 * x.powi(3) + 2.0315 * x.powi(5)
            })
        };
        let mut found = singular_values(&o, columns);
        let mut want: Vec<f64> = singular_values(&g, columns)
            .into_iter()
            .map(iterated)
            .collect();
        found.sort_by(f64::total_cmp);
        want.sort_by(f64::total_cmp);
        for (&found, &want) in found.iter().zip(&want) {
            assert!((found - want).abs() < 1e-4, "got {found}, want {want}");
            assert!(found < 1.3, "{rows} by {columns}: {found}");
            // The smallest singular value of a square matrix is too close to zero for five steps.
            let lowest = if rows == columns { 0.0 } else { 0.6 };
            assert!(found > lowest, "{rows} by {columns}: {found}");
        }
    }
}

#[test]
fn stacked_matrices_are_updated_independently() {
    let (rows_per_matrix, columns) = ([7, 40, 0, 40, 129], 40);
    let n = rows_per_matrix.iter().sum::<usize>() * columns;
    let mut rng = Rng::new(64);
    let (g, start) = (rng.normal(n), [rng.normal(n), rng.normal(n)]);
    let mut stack = start.clone();
    let norms = step_one(&MUON, &mut stack, &g, columns, &rows_per_matrix, 0.1);
    let (mut first, mut update) = (0, 0.0);
    for rows in rows_per_matrix {
        let range = first..first + rows * columns;
        first = range.end;
        let mut one = start.clone().map(|x| x[range.clone()].to_vec());
        let part = step_one(&MUON, &mut one, &g[range.clone()], columns, &[rows], 0.1);
        update += part.update.powi(2);
        for (one, stack) in one.iter().zip(&stack) {
            assert_eq!(one, &stack[range.clone()]);
        }
    }
    assert!((norms.update - update.sqrt()).abs() < 1e-12 * norms.update);
}

#[test]
fn large_and_small_matrices_together_match_separate_steps() {
    let shapes = [(24, 16), (LARGE / 16, 16), (10, 30)];
    let mut rng = Rng::new(65);
    let gradients = shapes.map(|(rows, columns)| rng.normal(rows * columns));
    let mut states = shapes.map(|(rows, columns)| [(); 2].map(|()| vec![0.0; rows * columns]));
    let rows = shapes.map(|(rows, _)| [rows]);
    let parts = states.iter_mut().zip(&gradients).zip(&rows).zip(shapes);
    let mut parameters: Vec<ParameterState> = parts
        .map(
            |((([p, m], g), rows_per_matrix), (_, columns))| ParameterState {
                p,
                g,
                m,
                columns,
                rows_per_matrix,
                weight_decay: 0.1,
            },
        )
        .collect();
    // More memory than the large one needs.
    let mut scratch = vec![f32::NAN; scratch_len(16, &rows[1]) + 1];
    let norms = step(&MUON, &mut parameters, &mut scratch);
    for (i, (rows, columns)) in shapes.into_iter().enumerate() {
        let mut alone = [(); 2].map(|()| vec![0.0; rows * columns]);
        let found = step_one(&MUON, &mut alone, &gradients[i], columns, &[rows], 0.1);
        assert_eq!(alone, states[i]);
        assert_eq!(found, norms[i]);
    }
}

#[test]
fn zero_gradients_leave_only_the_decay() {
    let start = Rng::new(66).normal(12 * 5);
    let mut state = [start.clone(), vec![0.0; 60]];
    let mut g = vec![0.0; 60];
    g[50] = 1.0;
    let norms = step_one(&MUON, &mut state, &g, 5, &[8, 4], 0.5);
    for (p, start) in state[0].iter().zip(&start).take(40) {
        assert_eq!(*p, start * 0.99);
    }
    assert!(state[0].iter().all(|p| p.is_finite()) && norms.update.is_finite());
    let mut state = [start.clone(), vec![0.0; 60]];
    let norms = step_one(&MUON, &mut state, &[0.0; 60], 5, &[8, 4], 0.0);
    assert_eq!(state, [start, vec![0.0; 60]]);
    assert_eq!(norms.update, 0.0);
}

#[test]
fn update_is_invariant_to_the_gradient_scale() {
    let g = Rng::new(67).normal(30 * 20);
    let want = to_f64(&orthogonal(&g, 20, 5));
    for size in [1e-3, 1e3, 1e30] {
        let g: Vec<f32> = g.iter().map(|g| g * size).collect();
        assert_all_close(&orthogonal(&g, 20, 5), &want, 1e-4);
    }
}

#[test]
fn non_finite_values_propagate() {
    for broken in [f32::NAN, f32::INFINITY] {
        let mut g = vec![1.0; 60];
        g[7] = broken;
        let mut state = [vec![1.0; 60], vec![0.0; 60]];
        let norms = step_one(&MUON, &mut state, &g, 5, &[8, 4], 0.0);
        assert!(state[0][..40].iter().all(|p| p.is_nan()));
        assert!(state[0][40..].iter().all(|p| p.is_finite()));
        assert!(norms.update.is_nan());
    }
}

#[test]
fn bit_identical_for_any_thread_count() {
    let shapes: [(&[usize], usize); 4] = [
        (&[300], 200),
        (&[50, 7, 130], 90),
        (&[64; 9], 48),
        (&[LARGE / 64], 64),
    ];
    let stacks: Vec<[Vec<f32>; 3]> = shapes
        .iter()
        .map(|(rows_per_matrix, columns)| {
            let n = rows_per_matrix.iter().sum::<usize>() * columns;
            let mut rng = Rng::new(68);
            [(); 3].map(|()| rng.normal(n))
        })
        .collect();
    assert_bit_identical_for_any_thread_count(|| {
        let mut stacks = stacks.clone();
        let parts = stacks.iter_mut().zip(shapes);
        let mut parameters: Vec<ParameterState> = parts
            .map(|([p, g, m], (rows_per_matrix, columns))| ParameterState {
                p,
                g,
                m,
                columns,
                rows_per_matrix,
                weight_decay: 0.1,
            })
            .collect();
        let halves = |x: f64| [x as f32, (x - f64::from(x as f32)) as f32];
        let sizes = shapes.map(|(rows_per_matrix, columns)| scratch_len(columns, rows_per_matrix));
        let mut scratch = vec![f32::NAN; sizes.into_iter().max().unwrap_or(0)];
        let norms: Vec<f32> = step(&MUON, &mut parameters, &mut scratch)
            .iter()
            .flat_map(|norms| [norms.update, norms.value])
            .flat_map(halves)
            .collect();
        [stacks.concat(), vec![norms]].concat().concat()
    });
}

#[test]
#[should_panic(expected = "muon::step: p is not (5, 3)")]
fn mismatched_rows_per_matrix_are_rejected() {
    let mut state = [vec![0.0; 12], vec![0.0; 12]];
    step_one(&MUON, &mut state, &[0.0; 12], 3, &[2, 3], 0.0);
}
