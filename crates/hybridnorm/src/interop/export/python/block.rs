//! Python of decoder blocks.

use super::norms::{Factor, factor};
use super::source::{Class, Method};
use super::{BlockClass, Generator, attention, feed_forward};
use crate::placement::{Combine, ResolvedBlock, ResolvedScale, Skip, Streams, SubLayer, Topology};

/// Adds the class of these blocks; returns its name.
pub(super) fn class(generator: &mut Generator<'_>, blocks: &BlockClass) -> String {
    let spec = generator.resolved.blocks[blocks.layers[0]].clone();
    let attention = attention::class(generator, blocks);
    let feed_forward = feed_forward::construct(generator, blocks);
    let feed_forward = match feed_forward.strip_suffix(')') {
        // The class of the feed-forward has a scale that depends on the layer.
        Some(call) if generator.needs_layer(&feed_forward) => format!("{call}, layer_idx)"),
        _ => feed_forward,
    };
    let mut writer = Writer {
        blocks,
        init: vec![
            format!("self.self_attn = {attention}(config, layer_idx)"),
            format!("self.mlp = {feed_forward}"),
        ],
        body: Vec::new(),
        generator,
    };
    let is_dual = writer.generator.resolved.streams.is_dual();
    let skips = [spec.attn.skip, spec.ffn.skip];
    match spec.topology {
        Topology::Sequential => {
            if skips
                .iter()
                .any(|skip| matches!(skip, Skip::BlockInput | Skip::RawPlusBlockInput))
            {
                writer.body.push("b = x".into());
            }
            writer.sub_layer("attn", &spec.attn);
            writer.sub_layer("ffn", &spec.ffn);
        }
        Topology::ParallelShared | Topology::ParallelTwo => writer.parallel(&spec),
    }
    writer.body.push(if is_dual {
        "return x, y".into()
    } else {
        "return x".into()
    });
    let Writer { init, body, .. } = writer;
    let class = Class {
        base: "GradientCheckpointingLayer",
        doc: blocks.doc.clone(),
        parameters: "config, layer_idx",
        init,
        methods: vec![Method {
            signature: match is_dual {
                true => {
                    "forward(self, x, y, position_embeddings, attention_mask, cache=None, **kwargs)"
                }
                false => {
                    "forward(self, x, position_embeddings, attention_mask, cache=None, **kwargs)"
                }
            },
            body,
        }],
    };
    generator.module.class("Block", class)
}

struct Writer<'a, 'b> {
    generator: &'a mut Generator<'b>,
    blocks: &'a BlockClass,
    init: Vec<String>,
    body: Vec<String>,
}

/// Expression of a sub-layer of a block.
type SubLayerOf = fn(&ResolvedBlock) -> &SubLayer<ResolvedScale>;

impl Writer<'_, '_> {
    /// Writes the equations of a sub-layer, in the order of the documentation of [`crate::placement::spec`].
    fn sub_layer(&mut self, name: &'static str, spec: &SubLayer<ResolvedScale>) {
        let streams = self.generator.resolved.streams;
        let s = match streams {
            Streams::Single | Streams::ResidualDual => "x",
            Streams::Siamese => {
                let scale = self.scale(name, "read_scale", |sub| sub.read_scale);
                let second = self.norm(name, "second_norm", true, "y");
                self.body
                    .push(format!("s = {} + {second}", scale.times("x")));
                "s"
            }
        };
        let n = match spec.in_norm {
            true => {
                let normed = self.norm(name, "in_norm", true, s);
                self.body.push(format!("n = {normed}"));
                "n"
            }
            false => s,
        };
        self.function(name, n);
        if spec.out_norm.is_some() {
            let normed = self.norm(name, "out_norm", true, "g");
            self.body.push(format!("g = {normed}"));
        }
        let skip = match spec.skip {
            Skip::Raw => "x",
            Skip::Normed => n,
            Skip::BlockInput => "b",
            Skip::RawPlusBlockInput => "(x + b)",
        };
        if streams.is_dual() {
            self.body.push("y = y + g".into());
        }
        let skip_scale = self.scale(name, "skip_scale", |sub| sub.skip_scale);
        let out_scale = self.scale(name, "out_scale", |sub| sub.out_scale);
        let x = match spec.combine {
            Combine::Add => {
                let sum = format!("{} + {}", skip_scale.times(skip), out_scale.times("g"));
                self.norm(name, "post_norm", spec.post_norm, &sum)
            }
            Combine::LerpUnit => {
                self.generator.module.uses("unit");
                format!(
                    "unit({skip} + {})",
                    out_scale.times(&format!("(g - {skip})"))
                )
            }
        };
        self.body.push(format!("x = {x}"));
    }

    /// Writes attention and feed-forward on the same stream, with one sum.
    fn parallel(&mut self, spec: &ResolvedBlock) {
        let n = self.norm("attn", "in_norm", spec.attn.in_norm, "x");
        self.body.push(format!("n = {n}"));
        self.function("attn", "n");
        let o = self.norm("attn", "out_norm", spec.attn.out_norm.is_some(), "g");
        let out_scale = self.scale("attn", "out_scale", |sub| sub.out_scale);
        self.body.push(format!("o = {}", out_scale.times(&o)));
        if spec.topology == Topology::ParallelTwo {
            let n = self.norm("ffn", "in_norm", spec.ffn.in_norm, "x");
            self.body.push(format!("n = {n}"));
        }
        self.function("ffn", "n");
        let g = self.norm("ffn", "out_norm", spec.ffn.out_norm.is_some(), "g");
        let out_scale = self.scale("ffn", "out_scale", |sub| sub.out_scale);
        let skip_scale = self.scale("attn", "skip_scale", |sub| sub.skip_scale);
        let sum = format!("{} + (o + {})", skip_scale.times("x"), out_scale.times(&g));
        let x = self.norm("attn", "post_norm", spec.attn.post_norm, &sum);
        self.body.push(format!("x = {x}"));
    }

    /// Writes `g = G(in_scale · n)`.
    fn function(&mut self, name: &'static str, n: &str) {
        let u = self.scale(name, "in_scale", |sub| sub.in_scale).times(n);
        self.body.push(match name {
            "attn" => format!(
                "g, _ = self.self_attn({u}, position_embeddings, attention_mask, cache, **kwargs)"
            ),
            _ => format!("g = self.mlp({u})"),
        });
    }

    /// Declares a norm, if there is one; returns the expression of its output.
    fn norm(&mut self, name: &str, site: &str, is_present: bool, x: &str) -> String {
        if !is_present {
            return x.to_owned();
        }
        let Generator { norms, module, .. } = &mut *self.generator;
        let construct = norms.of_width(module, "config.hidden_size");
        self.init.push(format!("self.{name}_{site} = {construct}"));
        format!("self.{name}_{site}({x})")
    }

    fn scale(
        &mut self,
        name: &'static str,
        site: &str,
        of: fn(&SubLayer<ResolvedScale>) -> ResolvedScale,
    ) -> Factor {
        let sub_layer: SubLayerOf = match name {
            "attn" => |block| &block.attn,
            _ => |block| &block.ffn,
        };
        let all = self.generator.scales(|block| of(sub_layer(block)));
        let field = format!("{name}_{site}");
        let module = &mut self.generator.module;
        let factor = factor(
            module,
            &field,
            &all,
            &self.blocks.layers,
            "config.hidden_size",
        );
        self.init.extend(factor.init.clone());
        factor
    }
}
