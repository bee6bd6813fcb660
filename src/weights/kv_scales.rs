//! Scales of the FP8 key-value cache, in every spelling seen.

use super::safetensors::StoredTensor;
use super::{shown, widen};
use crate::{Error, Result};
use safetensors::Dtype;
use std::collections::BTreeMap;

/// Calibrated scales of one layer's FP8 key-value cache: `x ≈ e4m3(x / scale) · scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvScales {
    /// Scale of the keys.
    pub k: f32,
    /// Scale of the values.
    pub v: f32,
}

/// The scales among the tensors whose names start with `prefix` (one layer's attention).
///
/// Matched by suffix, because writers disagree on what stands between: `k_scale`, `k_proj.k_scale`
/// (ModelOpt), `attn.k_scale` (vLLM).
pub(super) fn find(
    tensors: &BTreeMap<String, StoredTensor>,
    prefix: &str,
) -> Result<Option<KvScales>> {
    let (mut k, mut v) = (None, None);
    for (name, tensor) in tensors.range(prefix.to_string()..) {
        let Some(rest) = name.strip_prefix(prefix) else { break };
        let found = match rest.rsplit('.').next() {
            Some("k_scale") => &mut k,
            Some("v_scale") => &mut v,
            _ => continue,
        };
        let value = scalar(name, tensor)?;
        match *found {
            Some((other, first)) if first != value => {
                return Err(Error::checkpoint(format!(
                    "{} is {first} but {} is {value}",
                    shown(other),
                    shown(name)
                )));
            }
            _ => *found = Some((name, value)),
        }
    }
    match (k, v) {
        (Some((_, k)), Some((_, v))) => Ok(Some(KvScales { k, v })),
        (None, None) => Ok(None),
        (Some((name, _)), None) => {
            Err(Error::checkpoint(format!("{} has no v_scale beside it", shown(name))))
        }
        (None, Some((name, _))) => {
            Err(Error::checkpoint(format!("{} has no k_scale beside it", shown(name))))
        }
    }
}

pub(super) fn has_q_scale(tensors: &BTreeMap<String, StoredTensor>) -> bool {
    tensors.keys().any(|name| name.ends_with(".q_scale"))
}

fn scalar(name: &str, tensor: &StoredTensor) -> Result<f32> {
    let floats = matches!(tensor.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16);
    if !floats || !matches!(tensor.shape(), [] | [1]) {
        return Err(Error::checkpoint(format!(
            "tensor {}: expected F32, BF16 or F16 of shape [] or [1], found {} {:?} in {}",
            shown(name),
            tensor.dtype(),
            tensor.shape(),
            tensor.file().display()
        )));
    }
    let value = widen(tensor, name, 0)?.first().copied().unwrap_or(f32::NAN);
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::checkpoint(format!(
        "tensor {}: expected a positive number, found {value} in {}",
        shown(name),
        tensor.file().display()
    )))
}
