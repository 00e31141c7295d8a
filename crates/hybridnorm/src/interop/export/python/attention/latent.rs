//! Python of multi-head latent attention.

use super::super::source::{Class, number};
use super::super::{BlockClass, Generator};
use super::Writer;
use crate::model::MlaConfig;
use crate::placement::HeadNorm;

/// Returns the class of the attention of these blocks.
pub(super) fn class(generator: &mut Generator<'_>, blocks: &BlockClass, mla: &MlaConfig) -> Class {
    let head_dim = "config.qk_nope_head_dim + config.qk_rope_head_dim";
    let mut writer = Writer::new(generator, blocks, head_dim);
    writer.init.push("self.num_key_value_groups = 1".into());
    if let Some(scale) = writer.qk_scale("1") {
        // Queries and keys are both multiplied by it.
        writer.init.push(format!("self.scaling *= {scale}**2"));
    }
    let has_query_latent = mla.q_rank.is_some();
    writer.latent_projections(has_query_latent);
    writer.body.push(
        "nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim"
            .into(),
    );
    writer.body.insert(1, "config = self.config".into());
    let q = if has_query_latent {
        "q_a_proj"
    } else {
        "q_proj"
    };
    writer.body.push(format!(
        "q, latents = self.{q}(u), self.kv_a_proj_with_mqa(u)"
    ));
    if let Some(clip) = writer.inner.clip_qkv.map(number) {
        writer.body.push(format!(
            "q, latents = q.clamp(-{clip}, {clip}), latents.clamp(-{clip}, {clip})"
        ));
    }
    writer
        .body
        .push("c, k_rope = latents.split([config.kv_lora_rank, rope], -1)".into());
    writer.latent_norms(has_query_latent);
    writer.body.push(
        "k, v = self.kv_b_proj(c).view(*shape, -1, nope + value).split([nope, value], -1)".into(),
    );
    writer.body.push("k_rope = k_rope.unsqueeze(-2)".into());
    if writer.blocks.has_rope {
        writer.body.extend([
            "q_nope, q_rope = q.split([nope, rope], -1)".to_owned(),
            "q = torch.cat((q_nope, rotate(q_rope, *position_embeddings)), -1)".into(),
            "k_rope = rotate(k_rope, *position_embeddings)".into(),
        ]);
    }
    writer
        .body
        .push("k = torch.cat((k, k_rope.expand(*k.shape[:-1], -1)), -1)".into());
    let doc = "Multi-head latent attention; the cache holds full keys and values.";
    writer.output("self.config.v_head_dim", doc)
}

impl Writer<'_, '_> {
    fn latent_projections(&mut self, has_query_latent: bool) {
        let heads = "config.num_attention_heads * self.head_dim";
        match has_query_latent {
            true => {
                self.linear(
                    "q_a_proj",
                    "config.hidden_size",
                    "config.q_lora_rank",
                    false,
                );
                self.linear("q_b_proj", "config.q_lora_rank", heads, false);
            }
            false => self.linear("q_proj", "config.hidden_size", heads, false),
        }
        let latents = "config.kv_lora_rank + config.qk_rope_head_dim";
        self.linear("kv_a_proj_with_mqa", "config.hidden_size", latents, false);
        let head = "config.qk_nope_head_dim + config.v_head_dim";
        let heads = format!("config.num_attention_heads * ({head})");
        self.linear("kv_b_proj", "config.kv_lora_rank", &heads, false);
        let heads = "config.num_attention_heads * config.v_head_dim";
        let has_bias = self.generator.config.bias.out;
        self.linear("o_proj", heads, "config.hidden_size", has_bias);
    }

    /// Writes the norms of queries or query latent, key/value latent and rotary key.
    fn latent_norms(&mut self, has_query_latent: bool) {
        let (q_norm, k_norm, v_norm) = (self.inner.q_norm, self.inner.k_norm, self.inner.v_norm);
        let heads = "config.num_attention_heads * self.head_dim";
        let q_norm = match has_query_latent {
            true => self.norm("q", of_one_vector(q_norm), ["config.q_lora_rank"; 2]),
            false => self.norm("q", q_norm, ["self.head_dim", heads]),
        };
        let k_norm = self.norm("k", of_one_vector(k_norm), ["config.qk_rope_head_dim"; 2]);
        let v_norm = self.norm("v", of_one_vector(v_norm), ["config.kv_lora_rank"; 2]);
        let is_before_division = q_norm
            .as_ref()
            .is_some_and(|norm| has_query_latent || norm.is_full);
        if is_before_division {
            self.body.push("q = self.q_norm(q)".into());
        }
        if has_query_latent {
            self.body.push("q = self.q_b_proj(q)".into());
        }
        self.body.push("q = q.view(*shape, -1, nope + rope)".into());
        if q_norm.is_some() && !is_before_division {
            self.body.push("q = self.q_norm(q)".into());
        }
        if v_norm.is_some() {
            self.body.push("c = self.v_norm(c)".into());
        }
        if k_norm.is_some() {
            self.body.push("k_rope = self.k_norm(k_rope)".into());
        }
    }
}

/// Returns the norm of a latent, which is one vector instead of heads.
fn of_one_vector(kind: HeadNorm) -> HeadNorm {
    match kind {
        HeadNorm::PerHeadOwn => HeadNorm::PerHead,
        kind => kind,
    }
}
