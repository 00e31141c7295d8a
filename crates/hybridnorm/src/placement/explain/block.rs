//! Equations of one block configuration.

use super::super::spec::{Combine, Scale, Skip, Streams, SubLayer, Topology, UnresolvedBlock};
use super::inner;
use super::math::{Equation, Math, apply, difference, indexed, plain, sum, sym, times, unit};
use super::scales::Scales;

/// Equations of a block, and the definitions of their symbols.
pub(super) struct BlockText {
    pub equations: Vec<Equation>,
    pub definitions: Vec<Equation>,
}

/// Properties of the model that the equations of a block depend on.
#[derive(Clone, Copy)]
pub(super) struct EquationContext {
    pub streams: Streams,
    pub has_gated_activation: bool,
    pub is_latent_attention: bool,
}

pub(super) fn equations(
    block: &UnresolvedBlock,
    scales: Scales,
    context: EquationContext,
) -> BlockText {
    let mut writer = Writer {
        streams: context.streams,
        numbered: needs_norm_indices(block, context.streams),
        normed_skips: normed_skips(block),
        norms: 0,
        states: 0,
        out: Vec::new(),
        notes: Vec::new(),
        scales,
    };
    let (a, f) = (inner::attention_name(&block.attn_inner), plain("F"));
    let (x, y, next) = (plain("X"), plain("Y"), sym("X′", "X'"));
    match block.topology {
        _ if context.streams.is_dual() => writer.two_streams(block, &a, &f),
        Topology::Sequential => {
            writer.sub_layer(&block.attn, &a, &x, &x, y.clone());
            writer.sub_layer(&block.ffn, &f, &y, &x, next);
        }
        Topology::ParallelShared | Topology::ParallelTwo => {
            writer.parallel(block, &a, &f, &x, next)
        }
    }
    let scales = &mut writer.scales;
    let mut definitions = inner::attention(&block.attn_inner, context.is_latent_attention, scales);
    definitions.push(inner::feed_forward(
        &block.ffn_inner,
        context.has_gated_activation,
        scales,
    ));
    definitions.append(&mut writer.notes);
    definitions.append(&mut writer.scales.lines);
    BlockText {
        equations: writer.out,
        definitions,
    }
}

/// Writer of the equations of a block, in order.
pub(super) struct Writer {
    pub streams: Streams,
    /// True if norms are numbered.
    numbered: bool,
    normed_skips: usize,
    norms: usize,
    states: usize,
    pub out: Vec<Equation>,
    pub notes: Vec<Equation>,
    pub scales: Scales,
}

impl Writer {
    fn sub_layer(&mut self, sub: &SubLayer<Scale>, g: &Math, s: &Math, b: &Math, lhs: Math) {
        let n = self.sub_layer_input(sub, s);
        let skip = match sub.skip {
            Skip::Raw => s.clone(),
            Skip::Normed => n.clone(),
            Skip::BlockInput => b.clone(),
            Skip::RawPlusBlockInput => sum(&[b.clone(), s.clone()]),
        };
        let next = match sub.combine {
            Combine::Add => self.add(sub, g, n, skip),
            Combine::LerpUnit => self.lerp_unit(sub, g, n, skip),
        };
        self.out.push(Equation::new(lhs, next));
    }

    /// Returns the sub-layer input, `N(s)`, as a named intermediate if the skip connection uses it.
    pub fn sub_layer_input(&mut self, sub: &SubLayer<Scale>, s: &Math) -> Math {
        let n = match sub.in_norm {
            true => self.norm(s),
            false => s.clone(),
        };
        match sub.skip {
            Skip::Normed => self.named_state(n),
            _ => n,
        }
    }

    /// `N(c·skip + output)`
    fn add(&mut self, sub: &SubLayer<Scale>, g: &Math, n: Math, skip: Math) -> Math {
        let skip_scale = self.scales.factor(&sub.skip_scale);
        let output = self.output(sub, g, n);
        self.apply_post_norm(sub, sum(&[times(skip_scale, skip), output]))
    }

    /// `unit(skip + c·(N(G(n)) − skip))`
    fn lerp_unit(&mut self, sub: &SubLayer<Scale>, g: &Math, n: Math, skip: Math) -> Math {
        let o = self.branch(sub, g, n);
        let step = times(self.scales.factor(&sub.out_scale), difference(&o, &skip));
        let definition = unit_length();
        if !self.notes.contains(&definition) {
            self.notes.push(definition);
        }
        apply(&unit(), &sum(&[skip, step]))
    }

    pub fn apply_post_norm(&mut self, sub: &SubLayer<Scale>, total: Math) -> Math {
        match sub.post_norm {
            true => self.norm(&total),
            false => total,
        }
    }

    /// `X' = N(c·X + A(N₁(X)) + F(N₂(X)))`, with one input norm where it is shared.
    fn parallel(&mut self, block: &UnresolvedBlock, a: &Math, f: &Math, x: &Math, lhs: Math) {
        let shared = block.topology == Topology::ParallelShared && block.attn.in_norm;
        let (n_a, n_f) = if shared {
            let n = self.norm(x);
            let z = self.named_state(n);
            (z.clone(), z)
        } else {
            let mut read = |on: bool| match on {
                true => self.norm(x),
                false => x.clone(),
            };
            (read(block.attn.in_norm), read(block.ffn.in_norm))
        };
        let skip_scale = self.scales.factor(&block.attn.skip_scale);
        let skip = times(skip_scale, x.clone());
        let o_a = self.output(&block.attn, a, n_a);
        let o_f = self.output(&block.ffn, f, n_f);
        let total = self.apply_post_norm(&block.attn, sum(&[skip, o_a, o_f]));
        self.out.push(Equation::new(lhs, total));
    }

    /// `out_scale · N(G(in_scale · n))`
    fn output(&mut self, sub: &SubLayer<Scale>, g: &Math, n: Math) -> Math {
        let o = self.branch(sub, g, n);
        times(self.scales.factor(&sub.out_scale), o)
    }

    /// `N(G(in_scale · n))`
    pub fn branch(&mut self, sub: &SubLayer<Scale>, g: &Math, n: Math) -> Math {
        let in_scale = self.scales.factor(&sub.in_scale);
        let mut o = apply(g, &times(in_scale, n));
        if let Some(norm) = &sub.out_norm {
            o = self.norm(&o);
            if norm.gain_init != Scale::Const(1.0) {
                let start = self.scales.value_symbol(&norm.gain_init);
                let name = self.norm_name();
                self.notes
                    .push(Equation::note(name, "gain initialized to ").math(&start));
            }
        }
        o
    }

    pub fn norm(&mut self, x: &Math) -> Math {
        self.norms += 1;
        apply(&self.norm_name(), x)
    }

    /// Returns the name of the most recently written norm.
    fn norm_name(&self) -> Math {
        match self.numbered {
            true => indexed(&plain("N"), self.norms),
            false => plain("N"),
        }
    }

    /// Writes a value as a named intermediate on a separate line; returns the name.
    fn named_state(&mut self, value: Math) -> Math {
        self.states += 1;
        let name = match self.normed_skips {
            0 | 1 => plain("Z"),
            _ => indexed(&plain("Z"), self.states),
        };
        self.out.push(Equation::new(name.clone(), value));
        name
    }
}

/// `unit(x) = x / |x|`
fn unit_length() -> Equation {
    Equation::new(
        apply(&unit(), &plain("x")),
        sym("x / |x|", "x / \\lVert x \\rVert"),
    )
}

fn normed_skips(block: &UnresolvedBlock) -> usize {
    [&block.attn, &block.ffn]
        .iter()
        .filter(|sub| sub.skip == Skip::Normed)
        .count()
}

/// True if norms need an index: one line has two of them, or one has an initial gain other than 1. With two streams the
/// residual sum is on a separate line.
fn needs_norm_indices(block: &UnresolvedBlock, streams: Streams) -> bool {
    let on_line = |sub: &SubLayer<Scale>| {
        usize::from(sub.in_norm && sub.skip != Skip::Normed)
            + usize::from(sub.out_norm.is_some())
            + usize::from(sub.post_norm && !streams.is_dual())
    };
    let special = |sub: &SubLayer<Scale>| {
        sub.out_norm
            .as_ref()
            .is_some_and(|norm| norm.gain_init != Scale::Const(1.0))
    };
    let (a, f) = (on_line(&block.attn), on_line(&block.ffn));
    let has_two_norms_on_a_line = match block.topology {
        Topology::Sequential => a > 1 || f > 1,
        Topology::ParallelTwo => a + f > 1,
        Topology::ParallelShared => a + f > 2,
    };
    has_two_norms_on_a_line || special(&block.attn) || special(&block.ffn)
}
