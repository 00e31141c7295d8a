//! Metrics of documents, and their means with standard errors.

use serde::Serialize;

use super::document::TaskDocument;
use super::evaluate::DocumentScore;

/// Metric of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// Accuracy of the choice with the highest log-likelihood; with one continuation, the fraction that greedy
    /// decoding yields. As in lm-evaluation-harness.
    Acc,
    /// Accuracy of the choice with the highest log-likelihood per character of the choice, without the delimiter
    /// before it. As in lm-evaluation-harness.
    AccNorm,
    /// Accuracy with the log-likelihood per character of the continuation, the delimiter included. As in the
    /// evaluations that OLMo runs during training.
    LenNorm,
    /// Accuracy with the log-likelihood per byte of the choice, without the delimiter before it.
    AccBytes,
    /// Accuracy with the log-likelihood per token.
    AccPerToken,
    /// Accuracy with the log-likelihood minus that of the unconditional request, the pointwise mutual information.
    AccPmi,
    /// Fraction of documents whose correct choice greedy decoding yields.
    ExactMatch,
    /// Mean over documents of the bits per byte of the correct continuation, the delimiter included.
    Bpb,
    /// Exponential of the negative mean log-likelihood of the continuation.
    Perplexity,
}

/// Value of a metric of a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MetricValue {
    /// Metric.
    pub metric: Metric,
    /// Value over all documents.
    pub value: f64,
    /// Standard error: the sample standard deviation over the square root of the number of documents, for the
    /// perplexity times the perplexity (delta method). `None` for a single document.
    pub stderr: Option<f64>,
}

impl Metric {
    /// Metrics of multiple choice.
    pub(super) const MULTIPLE_CHOICE: [Self; 8] = [
        Self::Acc,
        Self::AccNorm,
        Self::LenNorm,
        Self::AccBytes,
        Self::AccPerToken,
        Self::AccPmi,
        Self::ExactMatch,
        Self::Bpb,
    ];
    /// Metrics of documents with one continuation.
    pub(super) const ONE_CONTINUATION: [Self; 3] = [Self::Acc, Self::Perplexity, Self::Bpb];

    /// Returns the name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::LenNorm => "len_norm",
            Self::AccBytes => "acc_bytes",
            Self::AccPerToken => "acc_per_token",
            Self::AccPmi => "acc_pmi",
            Self::ExactMatch => "exact_match",
            Self::Bpb => "bpb",
            Self::Perplexity => "perplexity",
        }
    }

    /// Returns the metric of a name.
    pub fn named(name: &str) -> Option<Self> {
        let all = Self::MULTIPLE_CHOICE.iter().chain(&Self::ONE_CONTINUATION);
        all.copied().find(|metric| metric.name() == name)
    }

    /// True for accuracies: each document has the value 0 or 1.
    pub fn is_accuracy(self) -> bool {
        !matches!(self, Self::Bpb | Self::Perplexity)
    }

    /// True if larger values are better.
    pub fn is_higher_better(self) -> bool {
        self.is_accuracy()
    }

    /// Returns the metric of a name in the configurations of OLMES, such as `acc_per_char`.
    pub(super) fn of_olmes(name: &str) -> Option<Self> {
        match name {
            "acc_raw" => Some(Self::Acc),
            "acc_per_char" => Some(Self::LenNorm),
            "acc_per_token" => Some(Self::AccPerToken),
            "acc_uncond" => Some(Self::AccPmi),
            "bits_per_byte" | "bits_per_byte_corr" | "logits_per_byte" => Some(Self::Bpb),
            _ => None,
        }
    }

    /// Returns the value of one document, whose mean over documents is the metric (for the perplexity, the
    /// log-likelihood); `None` if the document lacks a request for it.
    pub(super) fn of_document(self, document: &TaskDocument, score: &DocumentScore) -> Option<f64> {
        let choices = || document.choices.iter().zip(&score.choices);
        let best = |value: &dyn Fn(usize) -> f64| {
            let values = (0..score.choices.len()).map(value);
            // The first of equal values, as NumPy's argmax.
            let best = values
                .enumerate()
                .reduce(|best, next| if next.1 > best.1 { next } else { best });
            best.map(|(index, _)| f64::from(u8::from(document.gold.contains(&index))))
        };
        let per = |units: Vec<usize>| best(&|i| score.choices[i].log_likelihood / units[i] as f64);
        let gold = *document.gold.first()?;
        match self {
            Self::Acc if score.choices.len() == 1 => Some(is(score.choices[0].is_greedy)),
            Self::Acc => best(&|i| score.choices[i].log_likelihood),
            Self::AccNorm => per(choices()
                .map(|(choice, _)| choice.text().chars().count())
                .collect()),
            Self::LenNorm => per(choices()
                .map(|(choice, _)| choice.continuation.chars().count())
                .collect()),
            Self::AccBytes => per(choices().map(|(choice, _)| choice.text().len()).collect()),
            Self::AccPerToken => per(choices().map(|(_, score)| score.tokens).collect()),
            Self::AccPmi => {
                let without: Option<Vec<f64>> = score
                    .choices
                    .iter()
                    .map(|choice| choice.unconditional)
                    .collect();
                let without = without?;
                best(&|i| score.choices[i].log_likelihood - without[i])
            }
            Self::ExactMatch => Some(is(document
                .gold
                .iter()
                .any(|&gold| score.choices[gold].is_greedy))),
            Self::Bpb => {
                let bytes = document.choices[gold].continuation.len() as f64;
                Some(-score.choices[gold].log_likelihood / bytes / std::f64::consts::LN_2)
            }
            Self::Perplexity => Some(score.choices[gold].log_likelihood),
        }
    }

    /// Aggregates the values of all documents.
    pub(super) fn aggregate(self, values: &[f64]) -> MetricValue {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>();
        let stderr = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt());
        let (value, factor) = match self {
            Self::Perplexity => ((-mean).exp(), (-mean).exp()),
            _ => (mean, 1.0),
        };
        MetricValue {
            metric: self,
            value,
            stderr: stderr.map(|stderr| factor * stderr),
        }
    }
}

fn is(value: bool) -> f64 {
    f64::from(u8::from(value))
}
