//! What an analysis says in words.

#[cfg(test)]
mod tests;

use super::super::stats::{self, Paired};
use super::show::{Digits, counts, list, seeds, short};
use super::{Analysis, Comparison, Edge, PlacementSummary, Span, Verdict};
use crate::digits::percent;

/// One placement against the baseline, in a sentence. It says "better" or "worse" only where that
/// is the verdict.
pub fn sentence(placement: &PlacementSummary, analysis: &Analysis) -> String {
    let (name, baseline) = (&placement.placement, &analysis.rules.baseline);
    if name == baseline {
        return match &placement.best {
            Some(best) => format!(
                "{name} is the baseline: {:.3} nats at its best learning rate, {} ({})",
                best.loss.mean,
                best.lr,
                seeds(best.loss.n as u64)
            ),
            None => {
                format!("{name} is the baseline, but at no learning rate did every seed finish")
            }
        };
    }
    let Some(against) = &placement.against else {
        let reason = placement
            .why_not
            .as_deref()
            .unwrap_or("there is no comparison");
        return format!("{name} is not compared with {baseline}: {reason}");
    };
    let Paired {
        n, mean, low, high, ..
    } = against.difference;
    let digits = Digits::of(&against.difference);
    let level = percent(1.0 - analysis.rules.alpha);
    let count = seeds(n as u64);
    match against.verdict {
        Verdict::Indistinguishable => format!(
            "{name} is not distinguishable from {baseline} at {count} (difference {} nats, {level} \
             interval {} to {}); {}",
            digits.show(mean),
            digits.show(low),
            digits.show(high),
            resolving(against, "a difference as large as the one seen")
        ),
        Verdict::Better => format!(
            "{name} is better than {baseline} by {} nats ({level} interval {} to {}, {}, {count})",
            digits.show(-mean),
            digits.show(-high),
            digits.show(-low),
            chance(against, analysis)
        ),
        Verdict::Worse => format!(
            "{name} is worse than {baseline} by {} nats ({level} interval {} to {}, {}, {count})",
            digits.show(mean),
            digits.show(low),
            digits.show(high),
            chance(against, analysis)
        ),
    }
}

/// The whole analysis in three sentences: which placement is best, which tolerates the learning
/// rate, and how sure that is.
pub fn verdict(analysis: &Analysis) -> Vec<String> {
    if analysis.placements.is_empty() {
        return vec![
            "The study has no runs, so that no placement can be called best.".to_owned(),
            "Nothing is known about tolerance of the learning rate or stability.".to_owned(),
            "No comparison was made.".to_owned(),
        ];
    }
    vec![lowest(analysis), tolerance(analysis), certainty(analysis)]
}

/// The first sentence: lowest loss, and who differs from the baseline.
fn lowest(analysis: &Analysis) -> String {
    let baseline = &analysis.rules.baseline;
    let finished = analysis.placements.iter().filter_map(|placement| {
        let best = placement.best.as_ref()?;
        Some((placement, best))
    });
    let lowest = finished.min_by(|(_, a), (_, b)| a.loss.mean.total_cmp(&b.loss.mean));
    let Some((placement, best)) = lowest else {
        return "No placement finished all its seeds at any learning rate, so that none can be called best."
            .to_owned();
    };
    let name = &placement.placement;
    let mut text = format!(
        "{name} has the lowest mean validation loss ({:.3} nats at learning rate {}, {})",
        best.loss.mean,
        best.lr,
        seeds(best.loss.n as u64)
    );
    let own = placement.against.as_ref().map(|against| against.verdict);
    text += &match own {
        _ if name == baseline => " and is the baseline".to_owned(),
        Some(Verdict::Better) => format!(" and is better than the baseline, {baseline}"),
        Some(Verdict::Worse) => {
            format!(", but over common seeds is worse than the baseline, {baseline}")
        }
        Some(Verdict::Indistinguishable) => {
            format!(", but is not distinguishable from the baseline, {baseline}")
        }
        None if entry(analysis, baseline).is_none() => {
            format!("; the study has no runs of the baseline, {baseline}")
        }
        None => format!(", but is not compared with the baseline, {baseline}"),
    };
    let others = |verdict: Verdict| -> Vec<&str> {
        let all = compared(analysis)
            .filter(|(entry, against)| entry.placement != *name && against.verdict == verdict);
        all.map(|(entry, _)| entry.placement.as_str()).collect()
    };
    let (better, worse) = (others(Verdict::Better), others(Verdict::Worse));
    if !better.is_empty() {
        let also = if own == Some(Verdict::Better) {
            "also better"
        } else {
            "better than the baseline"
        };
        text += &format!("; {also}: {}", list(&better));
    }
    if !worse.is_empty() {
        text += &format!("; worse than the baseline: {}", list(&worse));
    }
    let some_other = compared(analysis).any(|(entry, _)| entry.placement != *name);
    if some_other && better.is_empty() && worse.is_empty() {
        text += "; of the other placements none can be told from the baseline";
    }
    text + "."
}

/// The second sentence: spans of learning rates, and divergence.
fn tolerance(analysis: &Analysis) -> String {
    let rates = |entry: &PlacementSummary| entry.rates.len();
    let text = match analysis.placements.iter().map(rates).max() {
        None | Some(0 | 1) => {
            "Only one learning rate was tried, so that tolerance of others is unknown".to_owned()
        }
        Some(_) => widest(analysis),
    };
    format!("{text}; {}.", divergence(analysis))
}

fn widest(analysis: &Analysis) -> String {
    let spans: Vec<(&PlacementSummary, Span)> = (analysis.placements.iter())
        .filter_map(|entry| Some((entry, entry.tolerance?)))
        .collect();
    let factors = spans.iter().map(|(_, span)| span.factor);
    let near = format!("within {} nats of its best loss", analysis.rules.tolerance);
    let Some(largest) = factors.max_by(f64::total_cmp) else {
        return "No placement has a best learning rate, so that tolerance of others is unknown"
            .to_owned();
    };
    if largest <= 1.0 {
        return format!("No placement stays {near} at more than one of the learning rates tried");
    }
    // Steps of a grid such as 1, 3, 10 are meant to be equal: what differs by less than the
    // smallest step is as wide.
    let as_wide = largest / smallest_step(analysis) * (1.0 + 1e-9);
    let ties: Vec<_> = (spans.iter())
        .filter(|(_, span)| span.factor > as_wide)
        .collect();
    let names: Vec<&str> = (ties.iter())
        .map(|(entry, _)| entry.placement.as_str())
        .collect();
    let least = ties.iter().map(|(_, span)| span.factor);
    let least = least.min_by(f64::total_cmp).unwrap_or(largest);
    let factor = match (short(least), short(largest)) {
        (least, largest) if least == largest => largest,
        (least, largest) => format!("{least} to {largest}"),
    };
    let beyond = match ties.iter().any(|(entry, span)| is_cut(entry, span)) {
        true => ", maybe more beyond the rates tried",
        false => "",
    };
    let widest = match ties.as_slice() {
        [(entry, span)] => format!(
            "{} stays {near} over the widest span of learning rates ({} to {}, ",
            entry.placement, span.low, span.high
        ),
        ties if ties.len() == analysis.placements.len() => {
            format!("Every placement stays {near} over an equally wide span of learning rates (")
        }
        _ => format!(
            "Of all placements, {} stay {} over the widest spans of learning rates (",
            list(&names),
            near.replace("its", "their")
        ),
    };
    let mut text = format!("{widest}a factor of {factor}{beyond}");
    let baseline = &analysis.rules.baseline;
    let of_baseline = (spans.iter()).find(|(entry, _)| entry.placement == *baseline);
    if let Some((_, span)) = of_baseline
        && !names.contains(&baseline.as_str())
    {
        text += &format!("; {baseline}: {}", short(span.factor));
    }
    let mut rates = analysis.placements.iter().flat_map(|entry| &entry.rates);
    if rates.any(|rate| rate.halved > 0) {
        text += "; rates that halving left out count as outside";
    }
    text + ")"
}

/// The smallest quotient of neighbouring rates of a placement.
fn smallest_step(analysis: &Analysis) -> f64 {
    let pairs = (analysis.placements.iter()).flat_map(|entry| entry.rates.windows(2));
    pairs.fold(f64::INFINITY, |least, pair| {
        least.min(pair[1].lr / pair[0].lr)
    })
}

/// Whether a placement's span may go on beyond the rates tried.
fn is_cut(entry: &PlacementSummary, span: &Span) -> bool {
    let ends = [entry.rates.first(), entry.rates.last()];
    let mut ends = ends.into_iter().flatten();
    ends.any(|rate| rate.lr == span.low || rate.lr == span.high)
}

fn divergence(analysis: &Analysis) -> String {
    let first = |entry: &PlacementSummary| {
        let mut diverged = entry.rates.iter().filter(|rate| rate.diverged > 0);
        diverged.next().map(|rate| rate.lr)
    };
    let Some(lowest) = analysis
        .placements
        .iter()
        .filter_map(first)
        .min_by(f64::total_cmp)
    else {
        return "no run diverged".to_owned();
    };
    let named = |wanted: Option<f64>| -> Vec<&str> {
        let matching = analysis
            .placements
            .iter()
            .filter(|entry| first(entry) == wanted);
        matching.map(|entry| entry.placement.as_str()).collect()
    };
    let (names, never) = (named(Some(lowest)), named(None));
    let verb = if names.len() == 1 {
        "diverges"
    } else {
        "diverge"
    };
    let mut text = format!("{} {verb} first, at learning rate {lowest}", list(&names));
    if !never.is_empty() {
        text += &format!(", and {} never", list(&never));
    }
    text
}

/// The third sentence: how much data, what was corrected for, what stays open.
fn certainty(analysis: &Analysis) -> String {
    let mut text = match compared(analysis).count() {
        0 => "Nothing is called better or worse".to_owned(),
        comparisons => basis(analysis, comparisons),
    };
    text += &missing(analysis);
    if compared(analysis).count() > 0 {
        text += &format!("; {}", open(analysis));
    }
    text + &edges(analysis) + "."
}

/// How much data, and what was corrected for.
fn basis(analysis: &Analysis, comparisons: usize) -> String {
    let pairs = compared(analysis).map(|(_, against)| against.pairs as u64);
    let rates = (analysis.placements.iter()).map(|entry| entry.rates.len() as u64);
    let holm = match comparisons {
        1 => String::new(),
        _ => format!(" and, by Holm's method, for {comparisons} comparisons"),
    };
    format!(
        "This rests on {}, each placement at the best of {}, with p values corrected for choosing \
         that rate{holm}",
        counts(pairs, "seed"),
        counts(rates, "learning rate"),
    )
}

/// Which comparisons are missing, and why.
fn missing(analysis: &Analysis) -> String {
    let mut grouped: Vec<(&str, Vec<&str>)> = Vec::new();
    for entry in &analysis.placements {
        let Some(reason) = entry.why_not.as_deref() else {
            continue;
        };
        match grouped.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(&entry.placement),
            None => grouped.push((reason, vec![&entry.placement])),
        }
    }
    let nothing = compared(analysis).count() == 0;
    match grouped.as_slice() {
        [] if nothing => ", since there is no placement besides the baseline".to_owned(),
        [(reason, _)] if nothing => format!(": {reason}"),
        groups => (groups.iter())
            .map(|(reason, names)| format!("; not compared: {} ({reason})", list(names)))
            .collect(),
    }
}

/// What is not distinguishable, and what it would take.
fn open(analysis: &Analysis) -> String {
    let baseline = &analysis.rules.baseline;
    let mut open: Vec<_> = compared(analysis)
        .filter(|(_, against)| against.verdict == Verdict::Indistinguishable)
        .collect();
    if open.is_empty() {
        return format!("nothing compared is left indistinguishable from {baseline}");
    }
    let names: Vec<&str> = open
        .iter()
        .map(|(entry, _)| entry.placement.as_str())
        .collect();
    let size = |against: &Comparison| against.difference.mean.abs();
    open.sort_by(|a, b| size(a.1).total_cmp(&size(b.1)));
    let typical = open[open.len() / 2].1;
    let what = match names.len() {
        1 => "a difference as large as the one seen",
        _ => "a difference of the size that is typical there",
    };
    let nats = Digits::of_size(size(typical)).show(size(typical));
    let resolving = resolving(typical, &format!("{what} ({nats} nats)"));
    format!(
        "not distinguishable from {baseline}: {}, where {resolving}",
        list(&names)
    )
}

/// How many seeds a difference would take.
fn resolving(against: &Comparison, difference: &str) -> String {
    match against.seeds_to_resolve {
        Some(count) => format!("about {} would resolve {difference}", seeds(count)),
        None if against.difference.mean == 0.0 => "no difference at all was seen".to_owned(),
        None => format!(
            "more than {} would be needed to resolve {difference}",
            seeds(stats::MOST_SEEDS)
        ),
    }
}

/// A warning for best rates at an end of those tried, or nothing.
fn edges(analysis: &Analysis) -> String {
    let at = |edge: Edge| -> Vec<&str> {
        let edged = analysis
            .placements
            .iter()
            .filter(|entry| entry.best.as_ref().and_then(|best| best.at_edge) == Some(edge));
        edged.map(|entry| entry.placement.as_str()).collect()
    };
    let part = |edge: Edge, word: &str| {
        let names = at(edge);
        (!names.is_empty()).then(|| format!("the {word} tried for {}", list(&names)))
    };
    let parts: Vec<String> = [part(Edge::Lowest, "lowest"), part(Edge::Highest, "highest")]
        .into_iter()
        .flatten()
        .collect();
    if parts.is_empty() {
        return String::new();
    }
    format!(
        "; warning: the best learning rate is {}, so that a better one may lie outside",
        parts.join(" and ")
    )
}

fn entry<'a>(analysis: &'a Analysis, name: &str) -> Option<&'a PlacementSummary> {
    analysis
        .placements
        .iter()
        .find(|entry| entry.placement == name)
}

fn compared(analysis: &Analysis) -> impl Iterator<Item = (&PlacementSummary, &Comparison)> + Clone {
    (analysis.placements.iter()).filter_map(|entry| Some((entry, entry.against.as_ref()?)))
}

fn chance(against: &Comparison, analysis: &Analysis) -> String {
    let p = match against.p_holm {
        p if p < 0.001 => "p < 0.001".to_owned(),
        p => format!("p = {p:.3}"),
    };
    match compared(analysis).count() {
        1 => p,
        _ => format!("{p} after Holm's correction"),
    }
}
