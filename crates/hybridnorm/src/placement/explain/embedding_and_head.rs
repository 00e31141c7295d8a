//! Equations outside the blocks: embedding, output head, norm function, initial weights.

use super::super::norm_functions::properties;
use super::super::resolve::Resolved;
use super::super::spec::{
    Gain, InitScheme, NormScalar, NormSpec, Placement, ProjectionGains, Scale, StdRule,
};
use super::super::validate::ModelFacts;
use super::math::{Equation, Math, apply, bracket, comma, indexed, number, plain, sum, sym, times};
use super::scales::Scales;

pub(super) fn embedding(placement: &Placement, r: &Resolved) -> Vec<Equation> {
    let mut scales = Scales::new(r.n_layers(), r.d_model, None);
    let factor = scales.factor(&placement.embed.scale);
    let mut x = times(factor, sym("E[token]", "E[\\mathrm{token}]"));
    if r.embed_norm {
        x = apply(&plain("N"), &x);
    }
    let start = sym("X₀", "X_0");
    let mut lines = vec![Equation::new(start.clone(), x)];
    if r.streams.is_dual() {
        lines.push(Equation::new(sym("D₀", "D_0"), start));
    }
    lines.append(&mut scales.lines);
    lines
}

pub(super) fn head(placement: &Placement, r: &Resolved) -> Vec<Equation> {
    let mut scales = Scales::new(r.n_layers(), r.d_model, None);
    let input = head_input(r);
    let product = sym(
        format!("W_head {}", input.text),
        format!("W_{{\\mathrm{{head}}}} \\, {}", input.latex),
    );
    let factor = scales.factor_per("vocabulary entry", &placement.logits.scale);
    let mut z = times(factor, product);
    if let Some(cap) = r.logits.softcap {
        let cap = number(cap);
        z = sym(
            format!("{0}·tanh({1} / {0})", cap.text, z.text),
            format!("{0} \\tanh\\left({1} / {0}\\right)", cap.latex, z.latex),
        );
    }
    let mut lines = vec![Equation::new(sym("logits", "\\mathrm{logits}"), z)];
    if r.logits.z_loss != 0.0 {
        let c = number(r.logits.z_loss);
        lines.push(Equation::new(
            sym("loss", "\\mathrm{loss}"),
            sym(
                format!("cross-entropy + {}·logsumexp(logits)²", c.text),
                format!(
                    "\\text{{cross-entropy}} + {} \\operatorname{{logsumexp}}(\\mathrm{{logits}})^2",
                    c.latex
                ),
            ),
        ));
    }
    lines.append(&mut scales.lines);
    lines
}

/// `N(X_L)`; with two streams `N₃(N₁(X_L) + N₂(D_L))`.
fn head_input(r: &Resolved) -> Math {
    let last = sym("X_L", "X_L");
    if !r.streams.is_dual() {
        return match r.final_norm {
            true => apply(&plain("N"), &last),
            false => last,
        };
    }
    let is_numbered = r.merge_norm || r.final_norm;
    let mut norms = 0;
    let mut norm = |x: &Math| {
        norms += 1;
        match is_numbered {
            true => apply(&indexed(&plain("N"), norms), x),
            false => apply(&plain("N"), x),
        }
    };
    let main = match r.merge_norm {
        true => norm(&last),
        false => last,
    };
    let merged = sum(&[main, norm(&sym("D_L", "D_L"))]);
    match r.final_norm {
        true => norm(&merged),
        false => bracket(&merged),
    }
}

/// Definition of `N`.
pub(super) fn norm_function(norm: &NormSpec) -> Vec<Equation> {
    let Some(function) = norm.kind else {
        return vec![Equation::note(plain("N"), "no norm (norm.kind = \"none\")")];
    };
    let (eps, function) = (number(norm.eps), properties(function));
    let row = sym(
        function.text.replace('ε', &eps.text),
        function.latex.replace('ε', &eps.latex),
    );
    let gained = match norm.gain {
        Gain::Plain => sym(
            format!("g ⊙ {}", row.text),
            format!("g \\odot {}", row.latex),
        ),
        Gain::OnePlus => sym(
            format!("(1 + w) ⊙ {}", row.text),
            format!("(1 + w) \\odot {}", row.latex),
        ),
        Gain::None => row,
    };
    let shifted = match norm.bias {
        true => sym(
            format!("{} + b", gained.text),
            format!("{} + b", gained.latex),
        ),
        false => gained,
    };
    let mut lines = vec![Equation::new(apply(&plain("N"), &plain("x")), shifted)];
    lines.extend(norm_parameters(norm));
    lines
}

fn norm_parameters(norm: &NormSpec) -> Vec<Equation> {
    let mut lines = Vec::new();
    let mut add_note = |name: Math, prose: String| lines.push(Equation::note(name, prose));
    let own = "separate for every norm";
    match norm.gain {
        Gain::Plain => add_note(plain("g"), format!("initialized to 1, {own}")),
        Gain::OnePlus => add_note(plain("w"), format!("initialized to 0, {own}")),
        Gain::None => {}
    }
    if norm.bias {
        add_note(plain("b"), format!("initialized to 0, {own}"));
    }
    for &scalar in norm.scalars() {
        let symbol = match scalar {
            NormScalar::Alpha => sym("α", "\\alpha"),
            NormScalar::Shift => plain("s"),
        };
        let start = number(norm.initial(scalar)).text;
        add_note(
            symbol,
            format!("learned scalar, initialized to {start}, {own}"),
        );
    }
    lines
}

/// Initial weights.
pub(super) fn init(placement: &Placement, r: &Resolved, facts: &ModelFacts) -> Vec<Equation> {
    if r.unit_weights {
        return unit_weights();
    }
    let sigma = match placement.init.std {
        StdRule::SmallInit => format!("σ = 1/√(2.5·d) = {}", number(r.init.std).text),
        StdRule::Const(_) => format!("σ = {}", number(r.init.std).text),
    };
    let prose = match r.init.scheme {
        InitScheme::Normal => format!("normal, standard deviation {sigma}"),
        InitScheme::Megatron => format!(
            "normal truncated at 3σ, {sigma}; W_O and W_down at σ/√(2L) = {}",
            number(r.init.std / (2.0 * r.n_layers() as f64).sqrt()).text
        ),
        InitScheme::DepthScaled => {
            "normal truncated at 3σ, σ = 1/√fan_in; W_O and W_down at 1/√(2 · fan_in · l)".into()
        }
        InitScheme::Xavier => "normal, variance 2 / (fan_in + fan_out)".into(),
    };
    let deviation = |std: f64| format!("normal, standard deviation {}", number(std).text);
    let head = sym("W_head", "W_{\\mathrm{head}}");
    let mut lines = vec![
        Equation::note(plain("W"), prose),
        Equation::note(plain("E"), deviation(r.embed_std())),
        Equation::note(head, deviation(r.head_std()) + " if not tied to E"),
    ];
    lines.extend(gains(&placement.init.gains, r, facts));
    lines
}

/// Weight vectors of unit length.
fn unit_weights() -> Vec<Equation> {
    let always = "of unit length, at initialization and after every optimizer step";
    let read = ["q", "k", "v", "gate", "up", "head"];
    let rows = comma(&plain("E"), &weights(&read));
    vec![
        Equation::note(rows, format!("rows {always}")),
        Equation::note(weights(&["O", "down"]), format!("columns {always}")),
    ]
}

/// `W_q, W_k, …`
fn weights(names: &[&str]) -> Math {
    let symbols = names
        .iter()
        .map(|n| sym(format!("W_{n}"), format!("W_{{\\mathrm{{{n}}}}}")));
    symbols.reduce(|a, b| comma(&a, &b)).unwrap_or_default()
}

/// Initial gains; projections with the same gain share a line.
fn gains(gains: &ProjectionGains, r: &Resolved, facts: &ModelFacts) -> Vec<Equation> {
    // Latent attention projects to keys and values with rows of one matrix.
    let [q, k, v] = match facts.is_latent_attention {
        true => ["UQ", "UK", "UV"],
        false => ["q", "k", "v"],
    };
    let projections = [
        (q, &gains.q),
        (k, &gains.k),
        (v, &gains.v),
        ("O", &gains.o),
        ("gate", &gains.gate),
        ("up", &gains.up),
        ("down", &gains.down),
    ];
    let mut scales = Scales::new(r.n_layers(), r.d_model, Some((1, r.n_layers())));
    let mut lines: Vec<Equation> = Vec::new();
    let mut done: Vec<&Scale> = vec![&Scale::Const(1.0)];
    for (_, gain) in projections {
        if done.contains(&gain) {
            continue;
        }
        done.push(gain);
        let names: Vec<_> = projections
            .iter()
            .filter(|(_, other)| *other == gain)
            .map(|(name, _)| *name)
            .collect();
        let start = scales.value_symbol(gain);
        lines.push(Equation::note(weights(&names), "initial weights times ").math(&start));
    }
    lines.append(&mut scales.lines);
    lines
}
