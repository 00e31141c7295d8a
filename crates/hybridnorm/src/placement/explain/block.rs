//! The equations of one block rule.

use super::super::spec::{BlockRule, Scale, Skip, SubLayer, Topology};
use super::inner;
use super::math::{Equation, Math, apply, indexed, plain, sum, sym, times};
use super::scales::Scales;

/// The equations of a block, and the lines that define what they use.
pub(super) struct BlockText {
    pub equations: Vec<Equation>,
    pub definitions: Vec<Equation>,
}

pub(super) fn equations(rule: &BlockRule, scales: Scales, gated: bool) -> BlockText {
    let mut writer = Writer {
        numbered: needs_numbers(rule),
        normed_skips: normed_skips(rule),
        norms: 0,
        states: 0,
        out: Vec::new(),
        notes: Vec::new(),
        scales,
    };
    let (a, f) = (inner::attention_name(&rule.attn_inner), plain("F"));
    let (x, y, next) = (plain("X"), plain("Y"), sym("X′", "X'"));
    match rule.topology {
        Topology::Sequential => {
            writer.sub_layer(&rule.attn, &a, &x, &x, y.clone());
            writer.sub_layer(&rule.ffn, &f, &y, &x, next);
        }
        Topology::ParallelShared | Topology::ParallelTwo => writer.parallel(rule, &a, &f, &x, next),
    }
    let mut definitions = inner::attention(&rule.attn_inner, &mut writer.scales);
    definitions.push(inner::feed_forward(&rule.ffn_inner, gated));
    definitions.append(&mut writer.notes);
    definitions.append(&mut writer.scales.lines);
    BlockText {
        equations: writer.out,
        definitions,
    }
}

struct Writer {
    /// Whether norms are told apart by an index.
    numbered: bool,
    normed_skips: usize,
    norms: usize,
    states: usize,
    out: Vec<Equation>,
    notes: Vec<Equation>,
    scales: Scales,
}

impl Writer {
    fn sub_layer(&mut self, sub: &SubLayer<Scale>, g: &Math, s: &Math, b: &Math, lhs: Math) {
        let mut n = match sub.in_norm {
            true => self.norm(s),
            false => s.clone(),
        };
        if sub.skip == Skip::Normed {
            n = self.named_state(n);
        }
        let skip_scale = self.scales.factor(&sub.skip_scale);
        let skip = match sub.skip {
            Skip::Raw => s.clone(),
            Skip::Normed => n.clone(),
            Skip::BlockInput => b.clone(),
            Skip::RawPlusBlockInput => sum(&[b.clone(), s.clone()]),
        };
        let skip = times(skip_scale, skip);
        let output = self.output(sub, g, n);
        let total = sum(&[skip, output]);
        let total = match sub.post_norm {
            true => self.norm(&total),
            false => total,
        };
        self.out.push(Equation::new(lhs, total));
    }

    /// `X' = N(c·X + A(N₁(X)) + F(N₂(X)))`, with one input norm where it is shared.
    fn parallel(&mut self, rule: &BlockRule, a: &Math, f: &Math, x: &Math, lhs: Math) {
        let shared = rule.topology == Topology::ParallelShared && rule.attn.in_norm;
        let (n_a, n_f) = if shared {
            let n = self.norm(x);
            let z = self.named_state(n);
            (z.clone(), z)
        } else {
            let mut read = |on: bool| match on {
                true => self.norm(x),
                false => x.clone(),
            };
            (read(rule.attn.in_norm), read(rule.ffn.in_norm))
        };
        let skip_scale = self.scales.factor(&rule.attn.skip_scale);
        let skip = times(skip_scale, x.clone());
        let o_a = self.output(&rule.attn, a, n_a);
        let o_f = self.output(&rule.ffn, f, n_f);
        let total = sum(&[skip, o_a, o_f]);
        let total = match rule.attn.post_norm {
            true => self.norm(&total),
            false => total,
        };
        self.out.push(Equation::new(lhs, total));
    }

    /// `out_scale · N(G(in_scale · n))`
    fn output(&mut self, sub: &SubLayer<Scale>, g: &Math, n: Math) -> Math {
        let in_scale = self.scales.factor(&sub.in_scale);
        let mut o = apply(g, &times(in_scale, n));
        if let Some(norm) = &sub.out_norm {
            o = self.norm(&o);
            if norm.gain_init != Scale::Const(1.0) {
                let start = self.scales.start(&norm.gain_init);
                let name = self.norm_name();
                let mut line = Equation::note(name, "gain starts at ");
                line.rhs.text.push_str(&start.text);
                line.rhs.latex.push_str(&start.latex);
                self.notes.push(line);
            }
        }
        let out_scale = self.scales.factor(&sub.out_scale);
        times(out_scale, o)
    }

    fn norm(&mut self, x: &Math) -> Math {
        self.norms += 1;
        apply(&self.norm_name(), x)
    }

    /// The name of the norm written last.
    fn norm_name(&self) -> Math {
        match self.numbered {
            true => indexed(&plain("N"), self.norms),
            false => plain("N"),
        }
    }

    /// Gives a state a line and a name of its own.
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

fn normed_skips(rule: &BlockRule) -> usize {
    [&rule.attn, &rule.ffn]
        .iter()
        .filter(|sub| sub.skip == Skip::Normed)
        .count()
}

/// Norms get an index where one line holds two of them, or where one starts differently.
fn needs_numbers(rule: &BlockRule) -> bool {
    let on_line = |sub: &SubLayer<Scale>| {
        usize::from(sub.in_norm && sub.skip != Skip::Normed)
            + usize::from(sub.out_norm.is_some())
            + usize::from(sub.post_norm)
    };
    let special = |sub: &SubLayer<Scale>| {
        sub.out_norm
            .as_ref()
            .is_some_and(|norm| norm.gain_init != Scale::Const(1.0))
    };
    let (a, f) = (on_line(&rule.attn), on_line(&rule.ffn));
    let crowded = match rule.topology {
        Topology::Sequential => a > 1 || f > 1,
        Topology::ParallelTwo => a + f > 1,
        Topology::ParallelShared => a + f > 2,
    };
    crowded || special(&rule.attn) || special(&rule.ffn)
}
