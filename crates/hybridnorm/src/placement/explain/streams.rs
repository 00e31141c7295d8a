//! Equations of a block with two residual streams.

use super::super::spec::{Scale, Skip, Streams, SubLayer, UnresolvedBlock};
use super::block::Writer;
use super::math::{Equation, Math, indexed, plain, sum, sym, times};

impl Writer {
    /// Writes the equations from `X` and `D` to `X′` and `D′`: input, output and residual updates of each
    /// sub-layer.
    pub fn two_streams(&mut self, block: &UnresolvedBlock, a: &Math, f: &Math) {
        let (x, y, d) = (plain("X"), plain("Y"), plain("D"));
        let first = self.two_stream_sub_layer(&block.attn, a, 1, (&x, &d), y.clone());
        let between = sum(&[d.clone(), first.clone()]);
        let second = self.two_stream_sub_layer(&block.ffn, f, 2, (&y, &between), sym("X′", "X'"));
        let gathered = sum(&[d.clone(), first, second]);
        self.out.push(Equation::new(sym("D′", "D'"), gathered));
        self.notes.push(Equation::note(
            d,
            "second stream, the embedding plus all sub-layer outputs",
        ));
    }

    /// `R = c·X + N(D)`, `G = N(A(N(R)))`, `Y = N(c·X + c·G)`; returns `G`.
    fn two_stream_sub_layer(
        &mut self,
        sub: &SubLayer<Scale>,
        function: &Math,
        number: usize,
        (x, d): (&Math, &Math),
        next: Math,
    ) -> Math {
        let s = match self.streams {
            Streams::Siamese => self.sum_of_streams(sub, number, x, d),
            Streams::Single | Streams::ResidualDual => x.clone(),
        };
        let n = self.sub_layer_input(sub, &s);
        let g = indexed(&plain("G"), number);
        let output = self.branch(sub, function, n.clone());
        self.out.push(Equation::new(g.clone(), output));
        let skip = match sub.skip {
            Skip::Normed => n,
            _ => x.clone(),
        };
        let skip = times(self.scales.factor(&sub.skip_scale), skip);
        let step = times(self.scales.factor(&sub.out_scale), g.clone());
        let total = self.apply_post_norm(sub, sum(&[skip, step]));
        self.out.push(Equation::new(next, total));
        g
    }

    /// `R = c·X + N(D)`
    fn sum_of_streams(&mut self, sub: &SubLayer<Scale>, number: usize, x: &Math, d: &Math) -> Math {
        let name = indexed(&plain("R"), number);
        let read = times(self.scales.factor(&sub.read_scale), x.clone());
        let second = self.norm(d);
        self.out
            .push(Equation::new(name.clone(), sum(&[read, second])));
        name
    }
}
