//! Comparisons of placements with the baseline.

use super::super::stats::{self, Paired};
use super::sweep::Sweep;
use super::{Comparison, Edge, PlacementSummary, Rules, Verdict};

/// Compares every placement with the baseline, or records the reason for a missing comparison.
pub(super) fn all(sweeps: &[Sweep], placements: &mut [PlacementSummary], rules: &Rules) {
    let baseline = sweeps.iter().find(|sweep| sweep.name == rules.baseline);
    let others = (0..sweeps.len()).filter(|&index| sweeps[index].name != rules.baseline);
    let others: Vec<usize> = others.collect();
    // The number is fixed in advance: comparisons that cannot be made count, too.
    let comparisons = others.len();
    let throughput = (placements.iter())
        .find(|placement| placement.placement == rules.baseline)
        .and_then(|placement| placement.tokens_per_second);
    let mut p = vec![1.0; comparisons];
    for (position, &index) in others.iter().enumerate() {
        let placement = &mut placements[index];
        let ratio = (placement.tokens_per_second).zip(throughput);
        let ratio = ratio.map(|(ours, theirs)| ours / theirs);
        match compare(&sweeps[index], baseline, comparisons, ratio, rules) {
            Ok((found, p_alone)) => {
                p[position] = p_alone;
                placement.against = Some(found);
            }
            Err(reason) => placement.why_not = Some(reason),
        }
    }
    for (&index, p_holm) in others.iter().zip(stats::holm(&p)) {
        if let Some(against) = &mut placements[index].against {
            against.p_holm = p_holm;
        }
    }
}

/// Returns a comparison, and the p value for its difference being beyond the margin.
fn compare(
    sweep: &Sweep,
    baseline: Option<&Sweep>,
    comparisons: usize,
    throughput_ratio: Option<f64>,
    rules: &Rules,
) -> Result<(Comparison, f64), String> {
    if let Some(problem) = rules.problem() {
        return Err(problem);
    }
    let baseline = baseline.ok_or("the study has no runs of the baseline")?;
    let best = sweep.best().ok_or_else(|| sweep.why_no_best().to_owned())?;
    let theirs =
        (baseline.best()).ok_or_else(|| format!("the baseline has {}", baseline.why_no_best()))?;
    let pairs: Vec<(f64, f64)> = best.pairs(theirs).collect();
    let differences: Vec<f64> = pairs.iter().map(|(ours, theirs)| ours - theirs).collect();
    let level = 1.0 - rules.alpha / comparisons as f64;
    let (first_of, second_of) = (sweep.contenders(), baseline.contenders());
    let difference = stats::paired_of_best(&differences, level, first_of, second_of)
        .ok_or("fewer than 2 seeds in common with the baseline")?;
    let verdict = match verdict(&difference, rules.margin) {
        // One of them may be better at a learning rate that was not compared.
        Verdict::Equivalent
            if may_be_better(sweep, rules.margin) || may_be_better(baseline, rules.margin) =>
        {
            Verdict::Indistinguishable
        }
        found => found,
    };
    if let Some(reason) = objection(verdict, sweep, baseline, difference.mean, rules.margin) {
        return Err(reason);
    }
    let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    let mean = |losses: Vec<f64>| losses.iter().sum::<f64>() / losses.len() as f64;
    let (loss, baseline_loss) = (mean(ours), mean(theirs));
    let beyond = difference.mean.abs() - rules.margin;
    let p_alone = p_beyond(&differences, rules.margin, first_of, second_of);
    let chosen_of = match difference.mean < 0.0 {
        true => first_of,
        false => second_of,
    };
    let alpha = rules.alpha / comparisons as f64;
    let seeds = (beyond > 0.0)
        .then(|| stats::seeds_needed_of_best(beyond, difference.sd, alpha, rules.power, chosen_of))
        .flatten();
    let compute_gain = compute_gain(loss, baseline_loss, rules);
    let found = Comparison {
        pairs: difference.n,
        loss,
        baseline_loss,
        difference,
        p_adjusted: (p_alone * comparisons as f64).min(1.0),
        p_holm: 1.0,
        verdict,
        seeds_to_resolve: seeds,
        compute_gain,
        throughput_ratio,
        effective_speedup: compute_gain.zip(throughput_ratio).map(|(a, b)| a * b),
    };
    Ok((found, p_alone))
}

/// Returns the verdict of the interval.
fn verdict(difference: &Paired, margin: f64) -> Verdict {
    match () {
        () if difference.high < -margin => Verdict::Better,
        () if difference.low > margin => Verdict::Worse,
        () if difference.low > -margin && difference.high < margin => Verdict::Equivalent,
        () => Verdict::Indistinguishable,
    }
}

/// Returns the two-sided p value for the difference not being beyond the margin on its observed side.
fn p_beyond(differences: &[f64], margin: f64, first_of: usize, second_of: usize) -> f64 {
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let shift = if mean < 0.0 { margin } else { -margin };
    if mean.abs() <= margin && margin > 0.0 {
        return 1.0;
    }
    let shifted: Vec<f64> = differences.iter().map(|value| value + shift).collect();
    stats::paired_of_best(&shifted, 0.5, first_of, second_of).map_or(1.0, |test| test.p)
}

/// Returns the reason to reject a verdict of the interval: the losing side may have a better learning rate than
/// the one compared.
fn objection(
    verdict: Verdict,
    sweep: &Sweep,
    baseline: &Sweep,
    difference: f64,
    margin: f64,
) -> Option<String> {
    let (loser, whose) = match verdict {
        Verdict::Better => (baseline, "the baseline's"),
        Verdict::Worse => (sweep, "its"),
        Verdict::Indistinguishable | Verdict::Equivalent => return None,
    };
    let side = if difference < 0.0 { "below" } else { "above" };
    let nats = format!("{:.3} nats {side} the baseline", difference.abs());
    let seen = format!("{nats} at the rates tried");
    if let Some((edge, lr)) = loser.edge_within(margin) {
        let edge = match edge {
            Edge::Lowest => "lowest",
            Edge::Highest => "highest",
            Edge::Only => {
                return Some(format!(
                    "undecided: only one learning rate was tried, and the comparison holds at that one \
                     only; {nats} there"
                ));
            }
        };
        return Some(match loser.edge() {
            Some(_) => format!(
                "undecided: {whose} best rate is at the edge of the grid, the {edge} tried, and a better \
                 one may lie outside; {seen}"
            ),
            None => format!(
                "undecided: the edge of the grid, {lr}, the {edge} rate tried, is within the margin of \
                 {whose} best rate, and a better one may lie outside; {seen}"
            ),
        });
    }
    let lr = loser.better_but_for_failures()?;
    Some(format!(
        "undecided: at learning rate {lr} some of {whose} runs were lost or had not learned yet, and \
         the others have a lower loss than at {whose} best rate; {seen}"
    ))
}

/// True if a learning rate that was not compared may have a lower loss.
fn may_be_better(sweep: &Sweep, margin: f64) -> bool {
    sweep.edge_within(margin).is_some() || sweep.better_but_for_failures().is_some()
}

fn compute_gain(loss: f64, baseline_loss: f64, rules: &Rules) -> Option<f64> {
    let reducible = |loss: f64| {
        let left = loss - rules.irreducible_loss;
        (left > 0.0).then_some(left)
    };
    reducible(baseline_loss)
        .zip(reducible(loss))
        .map(|(theirs, ours)| (theirs / ours).powf(rules.compute_exponent.recip()))
        .filter(|gain| gain.is_finite())
}
