//! How positions turn queries and keys: the angles of rotary embedding.

use super::ModelError;
use super::fields::Fields;

/// Rotary embedding: dimensions `i` and `i + head_dim / 2` of a head turn by
/// `position * frequency(i)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// `frequency(i) = theta^(-2 i / head_dim)` before scaling.
    pub theta: f64,
    /// For contexts beyond what a model was first trained with.
    pub scaling: RopeScaling,
}

/// How frequencies are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// By which.
        factor: f64,
    },
    /// Llama 3.1: those of long waves divided by `factor`, of short ones kept, between them mixed.
    Llama3 {
        /// By which long waves are divided.
        factor: f64,
        /// Waves longer than `num_original_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Waves shorter than `num_original_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions before scaling.
        num_original_positions: f64,
    },
}

impl RopeConfig {
    /// From `rope_theta` and `rope_scaling`, or both in `rope_parameters`.
    pub(super) fn read(fields: &mut Fields, default_theta: f64) -> Result<Self, ModelError> {
        if let Some(mut rope) = fields.take_object("rope_parameters")? {
            let theta = rope.take_number("rope_theta")?;
            let scaling = RopeScaling::read(&mut rope)?;
            rope.finish("rope_parameters.")?;
            fields.take_fixed("rope_theta", theta)?;
            return Ok(Self { theta, scaling });
        }
        let theta = match fields.take("rope_theta") {
            None => default_theta,
            Some(theta) => theta
                .as_f64()
                .filter(|theta| *theta > 0.0)
                .ok_or_else(|| ModelError::config("rope_theta", "a positive number", &theta))?,
        };
        let scaling = match fields.take_object("rope_scaling")? {
            None => RopeScaling::None,
            Some(mut rope) => {
                let scaling = RopeScaling::read(&mut rope)?;
                rope.finish("rope_scaling.")?;
                scaling
            }
        };
        Ok(Self { theta, scaling })
    }

    /// Radians by which a position turns each pair of dimensions: `[head_dim / 2]`.
    pub fn frequencies(&self, head_dim: u32) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| self.theta.powf(-f64::from(2 * i) / f64::from(head_dim)))
            .map(|frequency| self.scaling.apply(frequency))
            .collect()
    }

    /// Cosines, then sines, of every position: `[num_positions, head_dim]`.
    pub fn cos_sin_cache(&self, head_dim: u32, num_positions: u32) -> Vec<f32> {
        let frequencies = self.frequencies(head_dim);
        let row = |position: u32| {
            let angles = frequencies.iter().map(move |frequency| f64::from(position) * frequency);
            angles.clone().map(f64::cos).chain(angles.map(f64::sin)).map(|value| value as f32)
        };
        (0..num_positions).flat_map(row).collect()
    }
}

impl RopeScaling {
    fn read(rope: &mut Fields) -> Result<Self, ModelError> {
        let named = match rope.take("type") {
            None => rope.take_text("rope_type")?,
            Some(kind) => {
                rope.take_fixed("rope_type", kind.clone())?;
                kind.as_str().unwrap_or_default().to_owned()
            }
        };
        match named.as_str() {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: rope.take_number("factor")? }),
            "llama3" => Ok(Self::Llama3 {
                factor: rope.take_number("factor")?,
                low_freq_factor: rope.take_number("low_freq_factor")?,
                high_freq_factor: rope.take_number("high_freq_factor")?,
                num_original_positions: rope.take_number("original_max_position_embeddings")?,
            }),
            other => Err(ModelError::config("rope_type", "default, linear or llama3", other)),
        }
    }

    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, num_original_positions } => {
                let num_waves = num_original_positions * frequency / std::f64::consts::TAU;
                let kept = (num_waves - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}
