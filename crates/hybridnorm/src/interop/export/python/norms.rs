//! Python of norms and scales.

use super::source::{Class, Method, Module, number};
use crate::placement::{
    Gain, HeadNorm, LearnedShape, NormFn, NormScalar, NormSpec, Resolved, ResolvedScale,
};

/// Writes norms of one norm function.
pub(super) struct Norms<'a> {
    spec: &'a NormSpec,
    /// Its equation, for the docstring.
    equation: String,
}

/// Gain of a norm class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Affine {
    /// One gain (and bias) vector.
    Shared,
    /// One vector per head.
    PerHead,
    /// None.
    Absent,
}

/// A norm inside attention: statement that declares it, and on which shape it is applied.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct InnerNorm {
    /// Expression that constructs the norm.
    pub(super) construct: String,
    /// True for a norm over all heads together.
    pub(super) is_full: bool,
}

impl<'a> Norms<'a> {
    pub(super) fn new(resolved: &'a Resolved, equation: String) -> Self {
        Self {
            spec: &resolved.norm,
            equation,
        }
    }

    /// Returns the expression that constructs a norm over `width` channels.
    pub(super) fn of_width(&self, module: &mut Module, width: &str) -> String {
        self.construct(module, Affine::Shared, width, None)
    }

    /// Returns a norm of heads of `width` channels inside attention; `all` is the expression of the width of all heads.
    pub(super) fn inner(
        &self,
        module: &mut Module,
        kind: HeadNorm,
        [width, all]: [&str; 2],
        eps: Option<f64>,
    ) -> Option<InnerNorm> {
        let (affine, width, is_full) = match kind {
            HeadNorm::None => return None,
            HeadNorm::PerHead => (Affine::Shared, width, false),
            HeadNorm::PerHeadOwn => (Affine::PerHead, all, false),
            HeadNorm::PerHeadNoGain => (Affine::Absent, width, false),
            HeadNorm::Full => (Affine::Shared, all, true),
            HeadNorm::FullNoGain => (Affine::Absent, all, true),
        };
        Some(InnerNorm {
            construct: self.construct(module, affine, width, eps),
            is_full,
        })
    }

    fn construct(
        &self,
        module: &mut Module,
        affine: Affine,
        width: &str,
        eps: Option<f64>,
    ) -> String {
        let has_vectors = self.spec.gain != Gain::None || self.spec.bias;
        let affine = if has_vectors { affine } else { Affine::Absent };
        let kind = match affine {
            Affine::Shared => "Norm",
            Affine::PerHead => "NormOfHeads",
            Affine::Absent => "PlainNorm",
        };
        let name = module.class(kind, self.class(affine));
        let width = if affine == Affine::Absent { "" } else { width };
        let eps = eps.map(|eps| format!("eps={}", number(eps)));
        let arguments: Vec<&str> = [Some(width).filter(|w| !w.is_empty()), eps.as_deref()]
            .into_iter()
            .flatten()
            .collect();
        format!("{name}({})", arguments.join(", "))
    }

    fn class(&self, affine: Affine) -> Class {
        let function = self
            .spec
            .kind
            .expect("resolved blocks have no norms without a function");
        let has_gain = affine != Affine::Absent && self.spec.gain != Gain::None;
        let has_bias = affine != Affine::Absent && self.spec.bias;
        let has_eps = matches!(function, NormFn::Rmsnorm | NormFn::Layernorm | NormFn::L2);
        let mut init = Vec::new();
        if has_eps {
            init.push("self.eps = eps".to_owned());
        }
        let parameter = |name: &str, value: &str| format!("self.{name} = nn.Parameter({value})");
        if has_gain {
            init.push(match self.spec.gain {
                Gain::OnePlus => parameter("weight", "torch.zeros(width)"),
                _ => parameter("weight", "torch.ones(width)"),
            });
        }
        if has_bias {
            init.push(parameter("bias", "torch.zeros(width)"));
        }
        for &scalar in function.scalars() {
            let name = match scalar {
                NormScalar::Alpha => "alpha",
                NormScalar::Shift => "shift",
            };
            let value = format!("torch.full((1,), {})", number(self.spec.initial(scalar)));
            init.push(parameter(name, &value));
        }
        let body = self.forward(affine, function);
        let doc = match affine {
            Affine::Shared => self.equation.clone(),
            Affine::PerHead => "N with a gain for each head; (.., heads, channels).".into(),
            Affine::Absent => "N without gain.".into(),
        };
        Class {
            base: "nn.Module",
            doc: vec![doc],
            parameters: self.parameters(affine, has_eps),
            init,
            methods: vec![Method {
                signature: "forward(self, x)",
                body,
            }],
        }
    }

    /// Returns the statements of `forward`.
    fn forward(&self, affine: Affine, function: NormFn) -> Vec<String> {
        let mut body = vec!["h = x.float()".to_owned()];
        body.extend(
            function_of_row(function)
                .iter()
                .map(|line| (*line).to_owned()),
        );
        let vector = |name: &str| match affine {
            // One row per head.
            Affine::PerHead => format!("self.{name}.view(x.shape[-2:])"),
            _ => format!("self.{name}"),
        };
        if affine != Affine::Absent {
            match self.spec.gain {
                Gain::None => {}
                Gain::Plain => body.push(format!("h = {} * h", vector("weight"))),
                Gain::OnePlus => body.push(format!("h = (1 + {}.float()) * h", vector("weight"))),
            }
            if self.spec.bias {
                body.push(format!("h = h + {}", vector("bias")));
            }
        }
        body.push("return h.to(x.dtype)".into());
        body
    }

    /// Returns the constructor's parameters. The default of eps is the model's.
    fn parameters(&self, affine: Affine, has_eps: bool) -> &'static str {
        match (affine, has_eps) {
            (Affine::Absent, true) => "eps=EPS",
            (Affine::Absent, false) => "",
            (_, true) => "width, eps=EPS",
            (_, false) => "width",
        }
    }
}

/// Returns the statements that compute a norm function of `h` before gain and bias.
fn function_of_row(function: NormFn) -> &'static [&'static str] {
    match function {
        NormFn::Rmsnorm => &["h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)"],
        NormFn::Layernorm => &[
            "h = h - h.mean(-1, keepdim=True)",
            "h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)",
        ],
        NormFn::L2 => &["h = h * torch.rsqrt(h.square().sum(-1, keepdim=True) + self.eps)"],
        NormFn::Dyt => &["h = torch.tanh(self.alpha * h)"],
        NormFn::Derf => &["h = torch.erf(self.alpha * h + self.shift)"],
    }
}

/// Scale of a site in the blocks of one class: the statement that declares it, and its expression.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Factor {
    /// Statement of the constructor, if it needs one.
    pub(super) init: Option<String>,
    /// Expression in methods; `None` for a scale of 1.
    pub(super) value: Option<String>,
}

impl Factor {
    /// Returns `value * x`, or `x` for a scale of 1.
    pub(super) fn times(&self, x: &str) -> String {
        super::source::times(self.value.as_deref(), x)
    }
}

/// Returns the scale `field` of a class. `all` has the scale of every layer, `layers` are those of the class; without
/// layers the scale is one outside the blocks. `width` is the expression of the number of channels.
pub(super) fn factor(
    module: &mut Module,
    field: &str,
    all: &[ResolvedScale],
    layers: &[usize],
    width: &str,
) -> Factor {
    let of_layers: Vec<ResolvedScale> = layers.iter().map(|&layer| all[layer]).collect();
    let first = of_layers[0];
    let constant = |scale: &ResolvedScale| match *scale {
        ResolvedScale::Const(value) => value,
        ResolvedScale::Learned { init, start, .. } => start.map_or(1.0, |start| init / start),
    };
    let value = constant(&first);
    let is_uniform = of_layers.iter().all(|scale| constant(scale) == value);
    match first {
        ResolvedScale::Const(_) if is_uniform => Factor {
            init: None,
            value: (value != 1.0).then(|| number(value)),
        },
        ResolvedScale::Const(_) => {
            let table: Vec<f64> = all.iter().map(constant).collect();
            let of_layer = module.per_layer(field, &table);
            Factor {
                init: Some(format!("self.{field} = {of_layer}")),
                value: Some(format!("self.{field}")),
            }
        }
        ResolvedScale::Learned { shape, init, start } => {
            let elements = match shape {
                LearnedShape::Scalar => "1",
                LearnedShape::Vector => width,
            };
            let start = number(start.unwrap_or(init));
            let parameter = format!("nn.Parameter(torch.full(({elements},), {start}))");
            let constant = match is_uniform {
                true if value == 1.0 => String::new(),
                true => format!("{} * ", number(value)),
                false => {
                    let table: Vec<f64> = all.iter().map(constant).collect();
                    let of_layer = module.per_layer(field, &table);
                    return Factor {
                        init: Some(format!(
                            "self.{field} = {parameter}; self.{field}_rate = {of_layer}"
                        )),
                        value: Some(format!("self.{field}_rate * self.{field}")),
                    };
                }
            };
            Factor {
                init: Some(format!("self.{field} = {parameter}")),
                value: Some(format!("{constant}self.{field}")),
            }
        }
    }
}
