//! The ending of an adapter's key: what kind of factor a tensor is.

/// What a tensor is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Down,
    Up,
    Mid,
    Alpha,
    Hada1A,
    Hada1B,
    HadaT1,
    Hada2A,
    Hada2B,
    HadaT2,
    Kron1,
    Kron1A,
    Kron1B,
    Kron2,
    Kron2A,
    Kron2B,
    KronT2,
    /// Weight decomposition (`DoRA`, Liu et al. 2024).
    Magnitude,
}

/// Endings of keys; PEFT may put an adapter's name before `.weight`.
const ROLES: [(&str, Role); 34] = [
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_mid.weight", Role::Mid),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_A", Role::Down),
    (".lora_B", Role::Up),
    (".lora_magnitude_vector", Role::Magnitude),
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".dora_scale", Role::Magnitude),
    (".alpha", Role::Alpha),
    ("_lora.network_alpha", Role::Alpha),
    (".network_alpha", Role::Alpha),
    (".hada_w1_a", Role::Hada1A),
    (".hada_w1_b", Role::Hada1B),
    (".hada_t1", Role::HadaT1),
    (".hada_w2_a", Role::Hada2A),
    (".hada_w2_b", Role::Hada2B),
    (".hada_t2", Role::HadaT2),
    (".lokr_w1", Role::Kron1),
    (".lokr_w1_a", Role::Kron1A),
    (".lokr_w1_b", Role::Kron1B),
    (".lokr_w2", Role::Kron2),
    (".lokr_w2_a", Role::Kron2A),
    (".lokr_w2_b", Role::Kron2B),
    (".lokr_t2", Role::KronT2),
];

/// The layer's part of a key and the rest's meaning.
pub fn split(key: &str) -> Option<(&str, Role)> {
    ROLES.iter().find_map(|(ending, role)| Some((key.strip_suffix(ending)?, *role)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_layer_and_a_role() {
        for (key, expected) in [
            ("a.b.lora_down.weight", Some(("a.b", Role::Down))),
            ("a.to_q_lora.up.weight", Some(("a.to_q", Role::Up))),
            ("a.to_q.lora_linear_layer.up.weight", Some(("a.to_q", Role::Up))),
            ("a.to_q.lora_A.default.weight", Some(("a.to_q", Role::Down))),
            ("a.hada_w1_a", Some(("a", Role::Hada1A))),
            ("a.lokr_w1", Some(("a", Role::Kron1))),
            ("a.lokr_w1_b", Some(("a", Role::Kron1B))),
            ("a.weight", None),
            ("", None),
        ] {
            assert_eq!(split(key), expected, "{key}");
        }
    }
}
