//! What an analysis says in words.

use super::super::stats::{self, Paired};
use super::{Analysis, Comparison, Edge, PlacementSummary, Verdict};

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
    let level = level(analysis);
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
    let spans: Vec<_> = (analysis.placements.iter())
        .filter_map(|entry| Some((entry, entry.tolerance?)))
        .collect();
    let near = format!("within {} nats of its best loss", analysis.rules.tolerance);
    let Some(largest) = spans
        .iter()
        .map(|(_, span)| span.factor)
        .max_by(f64::total_cmp)
    else {
        return "No placement has a best learning rate, so that tolerance of others is unknown"
            .to_owned();
    };
    // Quotients of equal rates may differ in their last bits.
    let ties: Vec<_> = (spans.iter())
        .filter(|(_, span)| span.factor >= largest * (1.0 - 1e-9))
        .collect();
    let names: Vec<&str> = ties
        .iter()
        .map(|(entry, _)| entry.placement.as_str())
        .collect();
    if largest <= 1.0 {
        return format!("No placement stays {near} at more than one of the learning rates tried");
    }
    let cut = |(entry, span): &&(&PlacementSummary, super::Span)| {
        let end =
            |rate: Option<&super::RateSummary>, lr: f64| rate.is_some_and(|rate| rate.lr == lr);
        end(entry.rates.first(), span.low) || end(entry.rates.last(), span.high)
    };
    let at_least = if ties.iter().any(|tie| cut(tie)) {
        "at least "
    } else {
        ""
    };
    let factor = format!("a factor of {at_least}{}", short(largest));
    let mut text = match ties.as_slice() {
        [(entry, span)] => format!(
            "{} stays {near} over the widest span of learning rates ({} to {}, {factor}",
            entry.placement, span.low, span.high
        ),
        ties if ties.len() == spans.len() => {
            format!(
                "Every placement compared stays {near} over equally wide spans of learning rates ({factor}"
            )
        }
        _ => format!(
            "Each of {} stays {near} over the widest spans of learning rates ({factor}",
            list(&names)
        ),
    };
    let baseline = &analysis.rules.baseline;
    if let Some((_, span)) = spans.iter().find(|(entry, _)| entry.placement == *baseline)
        && !names.contains(&baseline.as_str())
    {
        text += &format!("; {baseline}: {}", short(span.factor));
    }
    let halved = analysis
        .placements
        .iter()
        .flat_map(|entry| &entry.rates)
        .any(|rate| rate.halved > 0);
    if halved {
        text += "; rates that halving left out count as outside";
    }
    text + ")"
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
    let baseline = &analysis.rules.baseline;
    let pairs = compared(analysis).map(|(_, against)| against.pairs as u64);
    let comparisons = pairs.clone().count();
    let mut text = match (pairs.clone().min(), pairs.max()) {
        (Some(least), Some(most)) => {
            let over = if comparisons == 1 {
                "one comparison".to_owned()
            } else {
                format!("{comparisons} comparisons by Holm's method")
            };
            let rates = analysis
                .placements
                .iter()
                .map(|entry| entry.rates.len() as u64);
            let (few, many) = (rates.clone().min().unwrap_or(0), rates.max().unwrap_or(0));
            format!(
                "This rests on {}, each placement at the best of {}, with p values corrected for \
                 choosing that rate and for {over}",
                count((least, most), "seed"),
                count((few, many), "learning rate"),
            )
        }
        _ => "Nothing is called better or worse".to_owned(),
    };
    let reasons = analysis
        .placements
        .iter()
        .filter_map(|entry| Some((entry, entry.why_not.as_deref()?)));
    let mut grouped: Vec<(&str, Vec<&str>)> = Vec::new();
    for (entry, reason) in reasons {
        match grouped.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(&entry.placement),
            None => grouped.push((reason, vec![&entry.placement])),
        }
    }
    match grouped.as_slice() {
        [] if comparisons == 0 => text += ", since there is no placement besides the baseline",
        [(reason, _)] if comparisons == 0 => text += &format!(": {reason}"),
        groups => {
            for (reason, names) in groups {
                text += &format!("; not compared: {} ({reason})", list(names));
            }
        }
    }
    if comparisons > 0 {
        text += &format!("; {}", open(analysis, baseline));
    }
    text + &edges(analysis) + "."
}

/// What is not distinguishable, and what it would take.
fn open(analysis: &Analysis, baseline: &str) -> String {
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
    let names = list(&names);
    let size = |against: &Comparison| against.difference.mean.abs();
    open.sort_by(|a, b| size(a.1).total_cmp(&size(b.1)));
    let typical = open[open.len() / 2].1;
    let what = format!(
        "a difference as large as {} there ({} nats)",
        if open.len() == 1 {
            "the one seen"
        } else {
            "is typical"
        },
        Digits::of(&typical.difference).show(size(typical))
    );
    format!(
        "not distinguishable from {baseline}: {names}, where {}",
        resolving(typical, &what)
    )
}

/// How many seeds a difference would take.
fn resolving(against: &Comparison, difference: &str) -> String {
    match against.seeds_to_resolve {
        Some(count) => format!("about {} would resolve {difference}", seeds(count)),
        None if against.difference.mean == 0.0 => "no difference at all was seen".to_owned(),
        None => format!(
            "more than {} would be needed to resolve {difference}",
            thousands(stats::MOST_SEEDS)
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

fn level(analysis: &Analysis) -> String {
    format!("{} %", short(100.0 * (1.0 - analysis.rules.alpha)))
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

/// Decimals with which a difference is shown: two significant digits of the interval's half width.
struct Digits(usize);

impl Digits {
    fn of(difference: &Paired) -> Self {
        let half = (difference.high - difference.low) / 2.0;
        let scale = if half > 0.0 {
            half
        } else {
            difference.mean.abs()
        };
        match scale > 0.0 {
            true => Self((1.0 - scale.log10().floor()).clamp(0.0, 6.0) as usize),
            false => Self(3),
        }
    }

    fn show(&self, nats: f64) -> String {
        let text = format!("{nats:.*}", self.0);
        // No sign where all digits are 0.
        match text.strip_prefix('-') {
            Some(rest) if rest.chars().all(|letter| matches!(letter, '0' | '.')) => rest.to_owned(),
            _ => text,
        }
    }
}

/// At most one decimal, and only where it is not 0.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

fn thousands(value: u64) -> String {
    match value {
        0..1000 => value.to_string(),
        _ => format!("{},{:03}", thousands(value / 1000), value % 1000),
    }
}

fn seeds(count: u64) -> String {
    let word = if count == 1 { "seed" } else { "seeds" };
    format!("{} {word}", thousands(count))
}

fn count((least, most): (u64, u64), what: &str) -> String {
    match (least, most) {
        (1, 1) => format!("1 {what}"),
        (least, most) if least == most => format!("{least} {what}s"),
        (least, most) => format!("{least} to {most} {what}s"),
    }
}

/// `a`, `a and b`, `a, b and c`.
fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
