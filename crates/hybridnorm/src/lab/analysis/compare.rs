//! Comparisons of placements with the baseline.

use super::super::stats::{self, PairedTest};
use super::sweep::Sweep;
use super::{AnalysisRules, Comparison, Edge, PlacementSummary, Verdict};

/// Compares every placement with the baseline, or records the reason for a missing comparison.
pub(super) fn all(sweeps: &[Sweep], placements: &mut [PlacementSummary], rules: &AnalysisRules) {
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
            Ok((found, p_uncorrected)) => {
                p[position] = p_uncorrected;
                placement.comparison = Some(found);
            }
            Err(reason) => placement.no_comparison_reason = Some(reason),
        }
    }
    for (&index, p_holm) in others.iter().zip(stats::holm(&p)) {
        if let Some(comparison) = &mut placements[index].comparison {
            comparison.p_holm = p_holm;
        }
    }
}

/// Returns a comparison, and the uncorrected p value of the null hypothesis that its difference is not beyond the
/// margin.
fn compare(
    sweep: &Sweep,
    baseline: Option<&Sweep>,
    comparisons: usize,
    throughput_ratio: Option<f64>,
    rules: &AnalysisRules,
) -> Result<(Comparison, f64), String> {
    rules.validate().map_err(|error| error.to_string())?;
    let baseline = baseline.ok_or("the study has no runs of the baseline")?;
    let best = sweep
        .best()
        .ok_or_else(|| sweep.no_best_reason().to_owned())?;
    let theirs = (baseline.best())
        .ok_or_else(|| format!("the baseline has {}", baseline.no_best_reason()))?;
    let pairs: Vec<(f64, f64)> = best.pairs(theirs).collect();
    let differences: Vec<f64> = pairs.iter().map(|(ours, theirs)| ours - theirs).collect();
    let alpha = rules.alpha / comparisons as f64;
    let (first_candidates, second_candidates) = (
        sweep.n_statistically_tied(),
        baseline.n_statistically_tied(),
    );
    let difference = stats::paired_t_test_with_selection(
        &differences,
        1.0 - alpha,
        first_candidates,
        second_candidates,
    )
    .ok_or("fewer than 2 seeds in common with the baseline")?;
    let verdict = decided_verdict(&difference, sweep, baseline, rules.margin)?;
    let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    let (loss, baseline_loss) = (mean(&ours), mean(&theirs));
    let p_uncorrected = p_beyond_margin(
        &differences,
        rules.margin,
        first_candidates,
        second_candidates,
    );
    let lower_candidates = match difference.mean < 0.0 {
        true => first_candidates,
        false => second_candidates,
    };
    let compute_gain = compute_gain(loss, baseline_loss, rules);
    let found = Comparison {
        pairs: difference.n,
        loss,
        baseline_loss,
        difference,
        p_adjusted: (p_uncorrected * comparisons as f64).min(1.0),
        p_holm: 1.0,
        verdict,
        seeds_for_significance: required_seeds(&difference, alpha, lower_candidates, rules),
        compute_gain,
        throughput_ratio,
        effective_speedup: compute_gain.zip(throughput_ratio).map(|(a, b)| a * b),
    };
    Ok((found, p_uncorrected))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Returns the number of seeds needed to detect a difference of the observed size as beyond the margin.
fn required_seeds(
    difference: &PairedTest,
    alpha: f64,
    candidates: usize,
    rules: &AnalysisRules,
) -> Option<u64> {
    let beyond = difference.mean.abs() - rules.margin;
    let sd = difference.sd;
    match beyond > 0.0 {
        true => stats::required_seeds_with_selection(beyond, sd, alpha, rules.power, candidates),
        false => None,
    }
}

/// Returns the verdict of the interval, unless a learning rate that was not compared could reverse it.
fn decided_verdict(
    difference: &PairedTest,
    sweep: &Sweep,
    baseline: &Sweep,
    margin: f64,
) -> Result<Verdict, String> {
    let verdict = match verdict(difference, margin) {
        // One of them may be better at a learning rate that was not compared.
        Verdict::Equivalent
            if may_have_lower_loss(sweep, margin) || may_have_lower_loss(baseline, margin) =>
        {
            Verdict::NotSignificant
        }
        found => found,
    };
    match undecided_reason(verdict, sweep, baseline, difference.mean, margin) {
        Some(reason) => Err(reason),
        None => Ok(verdict),
    }
}

/// Returns the verdict of the interval.
fn verdict(difference: &PairedTest, margin: f64) -> Verdict {
    match () {
        () if difference.high < -margin => Verdict::Better,
        () if difference.low > margin => Verdict::Worse,
        () if difference.low > -margin && difference.high < margin => Verdict::Equivalent,
        () => Verdict::NotSignificant,
    }
}

/// Returns the two-sided p value of the null hypothesis that the difference is not beyond the margin, on its observed
/// side.
fn p_beyond_margin(
    differences: &[f64],
    margin: f64,
    first_candidates: usize,
    second_candidates: usize,
) -> f64 {
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let shift = if mean < 0.0 { margin } else { -margin };
    if mean.abs() <= margin && margin > 0.0 {
        return 1.0;
    }
    let shifted: Vec<f64> = differences.iter().map(|value| value + shift).collect();
    stats::paired_t_test_with_selection(&shifted, 0.5, first_candidates, second_candidates)
        .map_or(1.0, |test| test.p)
}

/// Returns the reason to reject a verdict of the interval: the losing side may have a better learning rate than
/// the one compared.
fn undecided_reason(
    verdict: Verdict,
    sweep: &Sweep,
    baseline: &Sweep,
    difference: f64,
    margin: f64,
) -> Option<String> {
    let (higher_loss, owner) = match verdict {
        Verdict::Better => (baseline, "the baseline's"),
        Verdict::Worse => (sweep, "its"),
        Verdict::NotSignificant | Verdict::Equivalent => return None,
    };
    let side = if difference < 0.0 { "below" } else { "above" };
    let nats = format!("{:.3} nats {side} the baseline", difference.abs());
    let observed = format!("{nats} at the learning rates tried");
    if let Some((edge, lr)) = higher_loss.edge_within(margin) {
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
        return Some(match higher_loss.edge() {
            Some(_) => format!(
                "undecided: {owner} best learning rate is at the edge of the grid (the {edge} tried), and a \
                 better one may lie outside; {observed}"
            ),
            None => format!(
                "undecided: the edge of the grid, {lr} (the {edge} tried), is within the margin of {owner} best \
                 learning rate, and a better one may lie outside; {observed}"
            ),
        });
    }
    let lr = higher_loss.lower_loss_with_failed_seeds()?;
    Some(format!(
        "undecided: at learning rate {lr} some of {owner} runs diverged or had not learned yet, and the remaining \
         ones have a lower loss than at {owner} best learning rate; {observed}"
    ))
}

/// True if a learning rate that was not compared may have a lower loss.
fn may_have_lower_loss(sweep: &Sweep, margin: f64) -> bool {
    sweep.edge_within(margin).is_some() || sweep.lower_loss_with_failed_seeds().is_some()
}

fn compute_gain(loss: f64, baseline_loss: f64, rules: &AnalysisRules) -> Option<f64> {
    let reducible = |loss: f64| {
        let reducible_loss = loss - rules.irreducible_loss;
        (reducible_loss > 0.0).then_some(reducible_loss)
    };
    reducible(baseline_loss)
        .zip(reducible(loss))
        .map(|(theirs, ours)| (theirs / ours).powf(rules.compute_exponent.recip()))
        .filter(|gain| gain.is_finite())
}
