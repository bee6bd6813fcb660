//! Instruction-set tiers, their detection at run time, and the `MAX_CPU_ISA` cap.

use std::str::FromStr;

/// Instruction-set tiers, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// No intrinsics.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ.
    Avx512,
}

impl Isa {
    /// Every tier, lowest first.
    pub const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512];

    /// True when this CPU and operating system run the tier.
    pub fn is_supported(self) -> bool {
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        return match self {
            Isa::Scalar => true,
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Isa::Avx512 => {
                Isa::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
        };
        #[cfg(any(not(target_arch = "x86_64"), portable))]
        return self == Isa::Scalar;
    }

    /// The best supported tier not above `cap`, the value of `MAX_CPU_ISA` (`scalar`, `avx2` or
    /// `avx512`, in any case).
    ///
    /// # Errors
    ///
    /// Says which values there are when `cap` is none of them.
    pub fn detect(cap: Option<&str>) -> Result<Isa, String> {
        let cap = cap.map_or(Ok(Isa::Avx512), str::parse)?;
        let best = Isa::ALL.into_iter().rev().find(|isa| *isa <= cap && isa.is_supported());
        Ok(best.unwrap_or(Isa::Scalar))
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Isa, String> {
        match name.to_ascii_lowercase().as_str() {
            "scalar" => Ok(Isa::Scalar),
            "avx2" => Ok(Isa::Avx2),
            "avx512" => Ok(Isa::Avx512),
            _ => Err(format!("MAX_CPU_ISA is `{name}`, expected scalar, avx2 or avx512")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_lowers_the_tier_and_a_wrong_one_is_an_error() {
        assert_eq!(Isa::detect(Some("scalar")), Ok(Isa::Scalar));
        assert!(Isa::detect(Some("AVX2")).is_ok_and(|isa| isa <= Isa::Avx2));
        assert!(Isa::detect(None).is_ok_and(Isa::is_supported));
        let error = Isa::detect(Some("sse9")).unwrap_err();
        assert_eq!(error, "MAX_CPU_ISA is `sse9`, expected scalar, avx2 or avx512");
    }
}
