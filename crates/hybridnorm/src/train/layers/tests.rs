use super::*;

fn block_with_norms(norms: &[FiniteOrNone]) -> BlockStats {
    let by_label = |scale: f32| -> BTreeMap<String, FiniteOrNone> {
        (norms.iter().enumerate())
            .map(|(label, norm)| (label.to_string(), norm.map(|norm| scale * norm)))
            .collect()
    };
    BlockStats {
        residual: Default::default(),
        attn: Default::default(),
        ffn: Default::default(),
        attention: Default::default(),
        experts: None,
        parameters: ParameterStats {
            grad_norm: by_label(1.0),
            update_ratio: by_label(0.1),
            gain_drift: None,
        },
    }
}

#[test]
fn block_grad_norm_is_root_of_summed_squares() {
    assert_eq!(
        finite_or_none(block_with_norms(&[Some(3.0), Some(4.0)]).grad_norm()),
        Some(5.0)
    );
    assert_eq!(
        finite_or_none(block_with_norms(&[Some(3.0), None]).grad_norm()),
        None
    );
    assert_eq!(
        block_with_norms(&[Some(3.0), Some(4.0)]).max_update_ratio(),
        Some(0.4)
    );
    assert_eq!(
        block_with_norms(&[Some(3.0), None]).max_update_ratio(),
        None
    );
    assert_eq!(block_with_norms(&[]).max_update_ratio(), None);
}

#[test]
fn names_of_block_metrics_are_unique() {
    let is_unique = |mut names: Vec<&str>| {
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        names.len() == count
    };
    let metrics = || BLOCK_METRICS.iter();
    assert!(is_unique(
        metrics().filter_map(|metric| metric.tag).collect()
    ));
    assert!(is_unique(
        metrics().filter_map(|metric| metric.heat_map).collect()
    ));
    assert!(is_unique(
        metrics()
            .filter_map(|metric| Some(metric.column?.0))
            .collect()
    ));
}

#[test]
fn column_paths_resolve_to_the_value() {
    let mut block = block_with_norms(&[]);
    block.residual = ActivationStats {
        rms: Some(1.0),
        max: Some(2.0),
    };
    block.attn = ActivationStats {
        rms: Some(3.0),
        max: Some(4.0),
    };
    block.ffn = ActivationStats {
        rms: Some(5.0),
        max: Some(6.0),
    };
    block.attention = AttentionStats {
        max: Some(7.0),
        entropy: Some(8.0),
    };
    let json = serde_json::to_value(&block).unwrap();
    for metric in BLOCK_METRICS {
        let Some((_, path)) = metric.column else {
            continue;
        };
        let found = json.pointer(&format!("/{}", path.replace('.', "/")));
        let found = found.and_then(serde_json::Value::as_f64);
        let value = (metric.value)(&block).flatten().map(f64::from);
        assert!(found.is_some() && found == value, "{path}");
    }
}
