//! Activations; the gated ones read `[gate | up]`.

use hybridnorm_kernels::activation::Activation;

const ROOT_2_OVER_PI: f32 = 0.797_884_6;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The value and the slope of the function of a single number.
fn value_and_slope(act: Activation, x: f32) -> (f32, f32) {
    match act {
        Activation::Swiglu => {
            let s = sigmoid(x);
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::Geglu | Activation::Gelu => {
            let t = (ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh();
            let inner = ROOT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
            let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
            (0.5 * x * (1.0 + t), slope)
        }
        Activation::Relu2 => (x.max(0.0) * x.max(0.0), 2.0 * x.max(0.0)),
    }
}

/// `y` (rows, f) from `x` (rows, 2f or f).
pub fn forward(act: Activation, x: &[f32], y: &mut [f32], f: usize) {
    for (x, y) in x.chunks(act.inputs(f)).zip(y.chunks_mut(f)) {
        for c in 0..f {
            let (value, _) = value_and_slope(act, x[c]);
            y[c] = match act {
                Activation::Swiglu | Activation::Geglu => value * x[f + c],
                Activation::Gelu | Activation::Relu2 => value,
            };
        }
    }
}

/// `dx` (rows, 2f or f) from `dy` (rows, f).
pub fn backward(act: Activation, x: &[f32], dy: &[f32], dx: &mut [f32], f: usize) {
    let wide = act.inputs(f);
    let rows = x.chunks(wide).zip(dy.chunks(f));
    for ((x, dy), dx) in rows.zip(dx.chunks_mut(wide)) {
        for c in 0..f {
            let (value, slope) = value_and_slope(act, x[c]);
            match act {
                Activation::Swiglu | Activation::Geglu => {
                    dx[c] = dy[c] * x[f + c] * slope;
                    dx[f + c] = dy[c] * value;
                }
                Activation::Gelu | Activation::Relu2 => dx[c] = dy[c] * slope,
            }
        }
    }
}
