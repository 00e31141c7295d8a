//! Python of grouped-query attention.

use super::super::source::{Class, number};
use super::super::{BlockClass, Generator};
use super::Writer;
use crate::placement::{AttnScale, LearnedShape, QkOrder, ResolvedScale};

/// Names of queries, keys and values, with the setting that has the number of their heads.
const PROJECTIONS: [(&str, &str); 3] = [
    ("q", "num_attention_heads"),
    ("k", "num_key_value_heads"),
    ("v", "num_key_value_heads"),
];

/// Returns the class of the attention of these blocks.
pub(super) fn class(generator: &mut Generator<'_>, blocks: &BlockClass) -> Class {
    let mut writer = Writer::new(generator, blocks, "config.head_dim");
    let groups = "config.num_attention_heads // config.num_key_value_heads";
    writer
        .init
        .push(format!("self.num_key_value_groups = {groups}"));
    let bias = writer.generator.config.bias;
    for (name, heads) in PROJECTIONS {
        let width = format!("config.{heads} * self.head_dim");
        writer.linear(
            &format!("{name}_proj"),
            "config.hidden_size",
            &width,
            bias.qkv,
        );
    }
    let heads = "config.num_attention_heads * self.head_dim";
    writer.linear("o_proj", heads, "config.hidden_size", bias.out);
    writer
        .body
        .push("q, k, v = self.q_proj(u), self.k_proj(u), self.v_proj(u)".into());
    if let Some(clip) = writer.inner.clip_qkv.map(number) {
        writer.body.push(format!(
            "q, k, v = (z.clamp(-{clip}, {clip}) for z in (q, k, v))"
        ));
    }
    writer.normalize_and_rotate();
    writer.scale_queries_and_keys();
    writer.output("self.head_dim", "Grouped-query attention.")
}

impl Writer<'_, '_> {
    /// Writes norms of q, k and v, their division into heads, and the rotation of q and k.
    fn normalize_and_rotate(&mut self) {
        let kinds = [self.inner.q_norm, self.inner.k_norm, self.inner.v_norm];
        let is_after_rope = self.inner.qk_order == QkOrder::AfterRope;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for ((name, heads), kind) in PROJECTIONS.iter().zip(kinds) {
            let all = format!("config.{heads} * self.head_dim");
            let Some(norm) = self.norm(name, kind, ["self.head_dim", &all]) else {
                continue;
            };
            let line = format!("{name} = self.{name}_norm({name})");
            match (norm.is_full, is_after_rope && *name != "v") {
                (true, _) => self.body.push(line),
                (false, true) => after.push(line),
                (false, false) => before.push(line),
            }
        }
        if self.inner.attn_scale == AttnScale::Cosine {
            self.generator.module.uses("unit");
            let lines = if is_after_rope {
                &mut after
            } else {
                &mut before
            };
            lines.push("q, k = unit(q), unit(k)".into());
        }
        self.body
            .push("q, k, v = (z.view(*shape, -1, self.head_dim) for z in (q, k, v))".into());
        self.body.extend(before);
        if self.blocks.has_rope {
            self.body.push(
                "q, k = rotate(q, *position_embeddings), rotate(k, *position_embeddings)".into(),
            );
        }
        self.body.extend(after);
    }

    /// Writes the scale of normalized queries and keys, and the temperature of cosine attention.
    fn scale_queries_and_keys(&mut self) {
        let value = self.qk_scale("config.num_key_value_heads * self.head_dim");
        let is_vector = matches!(
            self.inner.qk_post_scale,
            ResolvedScale::Learned {
                shape: LearnedShape::Vector,
                ..
            }
        );
        match (value, is_vector) {
            (None, _) => {}
            (Some(value), true) => self.body.extend([
                format!("scale = ({value}).view(-1, self.head_dim)"),
                "q = q * scale.repeat_interleave(self.num_key_value_groups, 0)".into(),
                "k = k * scale".into(),
            ]),
            (Some(value), false) => self.body.push(format!("q, k = {value} * q, {value} * k")),
        }
        if self.inner.attn_scale == AttnScale::Cosine {
            self.init.push(
                "self.tau = nn.Parameter(torch.full((config.num_attention_heads,), 0.1))".into(),
            );
            self.body
                .push("q = q / self.tau.clamp(min=0.01)[:, None]".into());
        }
    }
}
