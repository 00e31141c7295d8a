//! Python of the feed-forward: dense, and a mixture of experts.

use super::norms::{Factor, factor};
use super::source::{Class, Method, number};
use super::{BlockClass, Generator};
use crate::model::{Activation, MoeConfig, Scoring};

/// Adds the class of the feed-forward of these blocks; returns the expression that constructs it.
pub(super) fn construct(generator: &mut Generator<'_>, blocks: &BlockClass) -> String {
    match &blocks.moe {
        None => {
            let has_bias = generator.config.bias.feed_forward;
            let name = dense(generator, blocks, has_bias);
            format!("{name}(config, config.intermediate_size)")
        }
        Some(moe) => {
            let class = mixture(generator, moe, blocks);
            format!(
                "{}(config)",
                generator.module.class("MixtureOfExperts", class)
            )
        }
    }
}

/// Norms, scales and activation between the projections: declarations, and statements from `gate` and `up`, or `up`
/// alone, to `h`.
struct Hidden {
    init: Vec<String>,
    body: Vec<String>,
}

impl Hidden {
    fn new(generator: &mut Generator<'_>, blocks: &BlockClass, width: &str) -> Self {
        let inner = generator.resolved.blocks[blocks.layers[0]].ffn_inner;
        let (mut init, mut body) = (Vec::new(), Vec::new());
        let activation = generator.config.activation;
        let gate_scales = generator.scales(|block| block.ffn_inner.gate_scale);
        let up_scales = generator.scales(|block| block.ffn_inner.up_scale);
        let mut site = |name: &str, has_norm: bool, scales: &[_]| {
            let construct =
                has_norm.then(|| generator.norms.of_width(&mut generator.module, width));
            if let Some(construct) = construct {
                init.push(format!("self.{name}_norm = {construct}"));
                body.push(format!("{name} = self.{name}_norm({name})"));
            }
            let field = format!("{name}_scale");
            let Factor {
                init: declared,
                value,
            } = factor(&mut generator.module, &field, scales, &blocks.layers, width);
            init.extend(declared);
            if let Some(value) = value {
                body.push(format!("{name} = {value} * {name}"));
            }
        };
        if activation.is_gated() {
            site("gate", inner.gate_norm, &gate_scales);
        }
        site("up", inner.up_norm, &up_scales);
        body.push(format!("h = {}", activated(activation)));
        if inner.mid_norm {
            let construct = generator.norms.of_width(&mut generator.module, width);
            init.push(format!("self.mid_norm = {construct}"));
            body.push("h = self.mid_norm(h)".into());
        }
        Self { init, body }
    }
}

/// Returns the hidden activation from `gate` and `up`.
fn activated(activation: Activation) -> &'static str {
    match activation {
        Activation::Swiglu => "nn.functional.silu(gate) * up",
        Activation::Geglu => "nn.functional.gelu(gate, approximate=\"tanh\") * up",
        Activation::Gelu => "nn.functional.gelu(up, approximate=\"tanh\")",
        Activation::GeluErf => "nn.functional.gelu(up)",
        Activation::Relu2 => "nn.functional.relu(up).square()",
    }
}

/// Statements that declare the projections.
fn projections(activation: Activation, has_bias: bool) -> Vec<String> {
    let bias = if has_bias { "True" } else { "False" };
    let mut init = Vec::new();
    if activation.is_gated() {
        init.push(format!(
            "self.gate_proj = nn.Linear(config.hidden_size, width, bias={bias})"
        ));
    }
    init.push(format!(
        "self.up_proj = nn.Linear(config.hidden_size, width, bias={bias})"
    ));
    init.push(format!(
        "self.down_proj = nn.Linear(width, config.hidden_size, bias={bias})"
    ));
    init
}

/// Statement that computes the projections of `u` by `of`.
fn project(activation: Activation, of: &str) -> String {
    match activation.is_gated() {
        true => format!("gate, up = {of}.gate_proj(u), {of}.up_proj(u)"),
        false => format!("up = {of}.up_proj(u)"),
    }
}

fn dense(generator: &mut Generator<'_>, blocks: &BlockClass, has_bias: bool) -> String {
    let activation = generator.config.activation;
    let hidden = Hidden::new(generator, blocks, "width");
    let mut init = projections(activation, has_bias);
    init.extend(hidden.init);
    let mut body = vec![project(activation, "self")];
    body.extend(hidden.body);
    body.push("return self.down_proj(h)".into());
    // A scale that depends on the layer is an index into a table.
    let parameters = match init.iter().any(|line| line.contains("layer_idx")) {
        true => "config, width, layer_idx",
        false => "config, width",
    };
    let class = Class {
        base: "nn.Module",
        doc: vec![],
        parameters,
        init,
        methods: vec![Method {
            signature: "forward(self, u)",
            body,
        }],
    };
    generator.module.class("FeedForward", class)
}

fn mixture(generator: &mut Generator<'_>, moe: &MoeConfig, blocks: &BlockClass) -> Class {
    let activation = generator.config.activation;
    let expert = Class {
        base: "nn.Module",
        doc: vec!["Projections of one expert.".into()],
        parameters: "config, width",
        init: projections(activation, false),
        methods: vec![],
    };
    let expert = generator.module.class("Expert", expert);
    let hidden = Hidden::new(generator, blocks, "config.moe_intermediate_size");
    let experts = format!("{expert}(config, config.moe_intermediate_size)");
    let mut init = vec![
        "self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)".to_owned(),
        format!("self.experts = nn.ModuleList({experts} for _ in range(config.num_experts))"),
        "self.top_k = config.num_experts_per_tok".into(),
    ];
    if moe.bias_rate.is_some() {
        init.push("self.selection_bias = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False)".into());
    }
    init.extend(hidden.init);
    let mut forward = vec![
        "shape, u = u.shape, u.reshape(-1, u.shape[-1])".to_owned(),
        "experts, weights = self.route(u)".into(),
    ];
    match moe.n_shared > 0 {
        true => {
            init.push(shared_experts(generator, blocks));
            forward.push("y = self.shared_experts(u)".into());
        }
        false => forward.push("y = torch.zeros_like(u)".into()),
    }
    forward.extend(SUM_OVER_EXPERTS.map(str::to_owned));
    let mut of_expert = vec![project(activation, "expert")];
    of_expert.extend(hidden.body);
    of_expert.push("return expert.down_proj(h)".into());
    Class {
        base: "nn.Module",
        doc: vec!["Mixture of experts, without dropped tokens.".into()],
        parameters: match init.iter().any(|line| line.contains("layer_idx")) {
            true => "config, layer_idx",
            false => "config",
        },
        init,
        methods: vec![
            Method {
                signature: "forward(self, u)",
                body: forward,
            },
            Method {
                signature: "expert(self, expert, u)",
                body: of_expert,
            },
            Method {
                signature: "route(self, u)",
                body: route(moe),
            },
        ],
    }
}

/// Statements that add the outputs of the routed experts to `y`.
const SUM_OVER_EXPERTS: [&str; 5] = [
    "for i, expert in enumerate(self.experts):",
    "    tokens, slots = torch.where(experts == i)",
    "    g = self.expert(expert, u[tokens]) * weights[tokens, slots, None].to(u.dtype)",
    "    y = y.index_add(0, tokens, g)",
    "return y.view(shape)",
];

/// Returns the statement that declares the shared experts: one feed-forward.
fn shared_experts(generator: &mut Generator<'_>, blocks: &BlockClass) -> String {
    let shared = dense(generator, blocks, false);
    let layer = match generator.needs_layer(&shared) {
        true => ", layer_idx",
        false => "",
    };
    let width = "config.n_shared_experts * config.moe_intermediate_size";
    format!("self.shared_experts = {shared}(config, {width}{layer})")
}

/// Statements of the router, from `u` (tokens, d) to the experts of each token and their weights.
fn route(moe: &MoeConfig) -> Vec<String> {
    let mut body = vec![
        "logits = nn.functional.linear(u.float(), self.gate.weight.float())".to_owned(),
        match moe.scoring {
            Scoring::Softmax => "scores = logits.softmax(-1)".into(),
            Scoring::Sigmoid => "scores = logits.sigmoid()".into(),
        },
    ];
    body.push(match moe.bias_rate {
        Some(_) => "keys = scores + self.selection_bias.float()".into(),
        None => "keys = scores".into(),
    });
    if moe.n_groups > 1 {
        let size = moe.n_experts / moe.n_groups;
        body.push(format!("groups = keys.view(-1, {}, {size})", moe.n_groups));
        body.push(match moe.bias_rate {
            Some(_) => format!("best = groups.topk({}, -1).values.sum(-1)", size.min(2)),
            None => "best = groups.amax(-1)".into(),
        });
        body.push(format!(
            "chosen = best.topk({}, -1).indices",
            moe.top_groups
        ));
        body.push(
            "allowed = torch.zeros_like(best, dtype=torch.bool).scatter(1, chosen, True)".into(),
        );
        body.push(format!(
            "keys = keys.masked_fill(~allowed.repeat_interleave({size}, -1), float(\"-inf\"))"
        ));
    }
    body.push("experts = keys.topk(self.top_k, -1).indices".into());
    body.push("weights = scores.gather(1, experts)".into());
    if moe.renormalize {
        body.push(match moe.scoring {
            Scoring::Softmax => "weights = weights / weights.sum(-1, keepdim=True)".into(),
            Scoring::Sigmoid => {
                "weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)".into()
            }
        });
    }
    match moe.scaling {
        1.0 => body.push("return experts, weights".into()),
        scaling => body.push(format!("return experts, {} * weights", number(scaling))),
    }
    body
}
