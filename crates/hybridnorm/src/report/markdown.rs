//! A report as Markdown for a pull request.

use std::fmt::Write as _;

use super::confidence::confidence_note;
use super::data_groups::incomparable_note;
use super::document::Document;
use super::escape::{CELL_CHARS, NAME_CHARS, markdown_line, markdown_text};
use super::format::exact;
use super::html::summary_line;
use super::palette::PlacementStyles;
use super::reference::{growth_table, placements};
use super::sections::{LIMITATIONS, machines, power_law};
use super::tables;
use super::view::{View, views};
use super::{history, sections};
use crate::text::escape_unprintable;

/// Returns a report as GitHub Markdown: verdict, tables, and collapsed equations. No images.
///
/// The output is deterministic.
pub fn markdown(document: &Document) -> String {
    let styles = PlacementStyles::new(document);
    let views = views(document);
    let mut text = format!(
        "# {}\n\n{}\n\n",
        markdown_line(&document.title, CELL_CHARS),
        markdown_text(&summary_line(document, &views, &styles))
    );
    let warnings = sections::incomplete(document)
        .into_iter()
        .chain(incomparable_note(&document.data_groups));
    for warning in warnings {
        let _ = writeln!(text, "**{}**\n", markdown_text(&warning));
    }
    for view in &views {
        let level = match view.name.is_empty() {
            true => "##",
            false => {
                let _ = writeln!(text, "## {}\n", markdown_text(&view.name));
                "###"
            }
        };
        add_view(&mut text, level, view, &styles);
    }
    if let Some(probe) = &document.probe {
        let _ = writeln!(text, "## Probe\n");
        text.push_str(&growth_table(probe, &styles).markdown());
    }
    equations(&mut text, document);
    text
}

fn add_view(text: &mut String, level: &str, view: &View, styles: &PlacementStyles) {
    if let Some(group) = view.group {
        let _ = writeln!(text, "{level} Verdict\n");
        for (position, sentence) in group.summary.iter().enumerate() {
            let bold = if position == 0 { "**" } else { "" };
            let _ = writeln!(text, "{bold}{}{bold}\n", markdown_text(sentence));
        }
        for caveat in &group.caveats {
            let _ = writeln!(text, "**{}**\n", markdown_text(caveat));
        }
        let _ = writeln!(
            text,
            "{}\n",
            markdown_text(&confidence_note(&group.analysis))
        );
        for sentence in &group.sentences {
            let _ = writeln!(text, "- {}", markdown_text(sentence));
        }
        if !group.sentences.is_empty() {
            text.push('\n');
        }
    }
    if let Some(table) = tables::comparisons(view, styles) {
        let _ = write!(text, "{level} Comparisons\n\n{}", table.markdown());
    }
    if let Some(table) = tables::tasks(view, styles) {
        let _ = write!(text, "{level} Downstream tasks\n\n{}", table.markdown());
    }
    if !view.runs.is_empty() {
        let _ = write!(
            text,
            "{level} Loss by learning rate\n\n{}{level} Stability and cost\n\n",
            tables::losses(view, styles).markdown()
        );
        if let Some(table) = tables::tolerance(view, styles) {
            text.push_str(&table.markdown());
        }
        text.push_str(&tables::stability(view, styles).markdown());
        text.push_str(&tables::cost(view, styles).markdown());
        let _ = writeln!(text, "{}\n", markdown_text(&machines(view)));
        for caveat in history::caveats(view) {
            let _ = writeln!(text, "- {}", markdown_text(&caveat));
        }
        if view.runs.iter().any(|run| run.directory.is_some()) {
            let _ = write!(
                text,
                "\n{level} Runs\n\n{}{}{}",
                history::differing_keys(view, styles).markdown(),
                tables::statuses(view, styles).markdown(),
                history::segments(view, styles).markdown()
            );
        }
    }
    constants(text, level, view);
}

fn constants(text: &mut String, level: &str, view: &View) {
    let (Some(group), Some(law)) = (view.group, power_law(view)) else {
        return;
    };
    let rules = &group.analysis.rules;
    let _ = writeln!(text, "{level} Constants\n");
    let mut settings: Vec<(&str, String)> = vec![
        ("baseline", rules.baseline.clone()),
        ("family-wise error rate (α)", exact(rules.alpha)),
        (
            "power assumed for the estimated numbers of seeds",
            exact(rules.power),
        ),
        ("learning rate tolerance (nats)", exact(rules.tolerance)),
    ];
    if let Some(cap) = rules.loss_cap {
        settings.push((
            "loss cap of the learning rate sensitivity (nats)",
            exact(cap),
        ));
    }
    for (name, value) in settings {
        let _ = writeln!(text, "- {name}: {}", markdown_text(&value));
    }
    let _ = writeln!(
        text,
        "- effective speed-up: compute gain × throughput ratio, by L(C) = {} + A · C^−{}; {}\n\n{}\n",
        exact(law.irreducible),
        exact(law.exponent),
        markdown_text(&law.factor_text),
        markdown_text(LIMITATIONS)
    );
}

fn equations(text: &mut String, document: &Document) {
    let placements = placements(document);
    if placements.is_empty() {
        return;
    }
    let _ = writeln!(text, "<details>\n<summary>Equations</summary>\n");
    for placement in placements {
        let (facts, equations) = without_name(placement.text, placement.hash);
        let fence = fence(equations);
        let _ = writeln!(
            text,
            "**{}** ({})\n\n{fence}text\n{}\n{fence}\n",
            markdown_line(placement.name, NAME_CHARS),
            markdown_line(&facts, NAME_CHARS),
            escape_unprintable(equations.trim_end())
        );
    }
    let _ = writeln!(text, "</details>");
}

/// Splits off the first line of the equations, since the heading above already has its name; returns the number of
/// blocks and the hash from that line, and the remaining lines.
fn without_name<'a>(text: &'a str, hash: &str) -> (String, &'a str) {
    let only_hash = || format!("hash {hash}");
    let Some((first, rest)) = text
        .split_once('\n')
        .filter(|(first, _)| first.contains(hash))
    else {
        return (only_hash(), text);
    };
    let facts = first
        .rsplit_once("  (")
        .map(|(_, facts)| facts.trim_end_matches(')'));
    let facts = facts.map_or_else(only_hash, str::to_owned);
    (facts, rest.trim_start_matches('\n'))
}

/// Returns a code fence: one backtick more than the longest run of them in the text, at least three.
fn fence(text: &str) -> String {
    let longest = (text.split(|character| character != '`').map(str::len).max()).unwrap_or(0);
    "`".repeat((longest + 1).max(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_placement_is_not_repeated_in_code() {
        let text = "@a  (2 blocks, hash 12ab)\n\nblocks\n  Y = X";
        let (facts, rest) = without_name(text, "12ab");
        assert_eq!(
            (facts.as_str(), rest),
            ("2 blocks, hash 12ab", "blocks\n  Y = X")
        );
        assert_eq!(
            without_name("Y = X\nZ", "12ab"),
            ("hash 12ab".to_owned(), "Y = X\nZ")
        );
    }

    #[test]
    fn fences_are_longer_than_those_of_the_text() {
        assert_eq!(fence("a"), "```");
        assert_eq!(fence("a ```` b"), "`````");
    }
}
