//! Python of attention.

mod grouped_query;
mod latent;

use super::norms::{Factor, InnerNorm, factor};
use super::source::{Class, Method, number};
use super::{BlockClass, Generator};
use crate::model::ModelConfig;
use crate::placement::{AttnInner, AttnScale, HeadNorm, ResolvedScale};

/// Adds the class of the attention of these blocks; returns its name.
pub(super) fn class(generator: &mut Generator<'_>, blocks: &BlockClass) -> String {
    let class = match generator.config.mla {
        None => grouped_query::class(generator, blocks),
        Some(mla) => latent::class(generator, blocks, &mla),
    };
    generator.module.class("Attention", class)
}

/// Writer of an attention class.
struct Writer<'a, 'b> {
    generator: &'a mut Generator<'b>,
    inner: AttnInner<ResolvedScale>,
    blocks: &'a BlockClass,
    /// Statements of the constructor.
    init: Vec<String>,
    /// Statements of `forward`.
    body: Vec<String>,
}

impl<'a, 'b> Writer<'a, 'b> {
    /// Begins the constructor; `head_dim` is the expression of the width of queries and keys.
    fn new(generator: &'a mut Generator<'b>, blocks: &'a BlockClass, head_dim: &str) -> Self {
        let inner = generator.resolved.blocks[blocks.layers[0]]
            .attn_inner
            .clone();
        let mut init = vec![
            "self.config = config".to_owned(),
            "self.layer_idx = layer_idx".into(),
            "self.is_causal = True".into(),
            format!("self.head_dim = {head_dim}"),
            format!("self.scaling = {}", scaling(inner.attn_scale)),
        ];
        if blocks.has_window {
            init.push("self.sliding_window = config.sliding_window".into());
        }
        Self {
            generator,
            inner,
            blocks,
            init,
            body: vec!["shape = u.shape[:-1]".into()],
        }
    }

    /// Declares a linear layer.
    fn linear(&mut self, name: &str, from: &str, to: &str, has_bias: bool) {
        let bias = if has_bias { "True" } else { "False" };
        self.init.push(format!(
            "self.{name} = nn.Linear({from}, {to}, bias={bias})"
        ));
    }

    /// Declares the norm `NAME_norm` of heads, if there is one; `widths` are the expressions of the width of a head and
    /// of all heads.
    fn norm(&mut self, name: &str, kind: HeadNorm, widths: [&str; 2]) -> Option<InnerNorm> {
        let Generator { norms, module, .. } = &mut *self.generator;
        let norm = norms.inner(module, kind, widths, self.inner.norm_eps)?;
        self.init
            .push(format!("self.{name}_norm = {}", norm.construct));
        Some(norm)
    }

    /// Returns the scale of normalized queries and keys.
    fn qk_scale(&mut self, width: &str) -> Option<String> {
        let all = self
            .generator
            .scales(|block| block.attn_inner.qk_post_scale);
        let module = &mut self.generator.module;
        let Factor { init, value } = factor(module, "qk_scale", &all, &self.blocks.layers, width);
        self.init.extend(init);
        value
    }

    /// Writes cache, attention itself, norm of the context, and output projection, from `q`, `k` and `v`
    /// (b, t, heads, channels).
    fn output(mut self, value_dim: &str, doc: &str) -> Class {
        let mut options = String::new();
        if let Some(cap) = self.inner.attn_softcap {
            self.generator.module.uses("softcap");
            options += &format!(", softcap={}", number(cap));
        }
        if self.blocks.has_window {
            options += ", sliding_window=self.sliding_window";
        }
        let attend = "ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)";
        self.body.extend([
            "q, k, v = (z.transpose(1, 2) for z in (q, k, v))".to_owned(),
            "if cache is not None:".into(),
            "    k, v = cache.update(k, v, self.layer_idx)".into(),
            format!("attend = {attend}"),
            format!(
                "context, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling{options}, **kwargs)"
            ),
        ]);
        self.context_norm_and_gain(value_dim);
        self.body
            .push("return self.o_proj(context.reshape(*shape, -1)), weights".into());
        Class {
            base: "nn.Module",
            doc: vec![doc.to_owned()],
            parameters: "config, layer_idx",
            init: self.init,
            methods: vec![Method {
                signature: "forward(self, u, position_embeddings, attention_mask, cache, **kwargs)",
                body: self.body,
            }],
        }
    }

    fn context_norm_and_gain(&mut self, value_dim: &str) {
        let heads = format!("config.num_attention_heads * {value_dim}");
        let norm = self.norm("ctx", self.inner.ctx_norm, [value_dim, &heads]);
        let is_by_head = norm.as_ref().is_some_and(|norm| !norm.is_full);
        if norm.is_some() && !is_by_head {
            self.body
                .push("context = self.ctx_norm(context.reshape(*shape, -1))".into());
        }
        if is_by_head || self.inner.head_gain {
            self.body.push(format!(
                "context = context.reshape(*shape, -1, {value_dim})"
            ));
        }
        if is_by_head {
            self.body.push("context = self.ctx_norm(context)".into());
        }
        if self.inner.head_gain {
            self.init.push(
                "self.head_gain = nn.Parameter(torch.ones(config.num_attention_heads))".into(),
            );
            self.body
                .push("context = self.head_gain[:, None] * context".into());
        }
    }
}

/// Expression of the factor of the attention logits.
fn scaling(scale: AttnScale) -> String {
    match scale {
        AttnScale::InvSqrtHeadDim => "self.head_dim**-0.5".into(),
        AttnScale::SqrtHeadDim => "self.head_dim**0.5".into(),
        AttnScale::Const(value) => number(value),
        AttnScale::Cosine => "1.0".into(),
    }
}

/// True if heads can be distributed over devices: no norm and no parameter spans heads.
pub(super) fn is_divisible_by_heads(
    config: &ModelConfig,
    inner: &AttnInner<ResolvedScale>,
) -> bool {
    let by_head = [inner.q_norm, inner.k_norm, inner.v_norm, inner.ctx_norm]
        .iter()
        .all(|norm| {
            matches!(
                norm,
                HeadNorm::None | HeadNorm::PerHead | HeadNorm::PerHeadNoGain
            )
        });
    let is_constant = matches!(inner.qk_post_scale, ResolvedScale::Const(_));
    let has_vector_of_heads = inner.head_gain || inner.attn_scale == AttnScale::Cosine;
    by_head && is_constant && !has_vector_of_heads && config.mla.is_none()
}
