//! Commands that launch a kernel.

use crate::pairs;

/// Arguments of the command that launches this kernel, or these, `times` times each, and little else.
pub fn launching(kernel: &str, times: usize) -> Vec<String> {
    ["launch", kernel, "--times", &times.to_string()].map(str::to_owned).to_vec()
}

/// Arguments of the command whose time line shows this kernel among what runs beside it: `run` of
/// the first pair that has its room; none if no pair has.
pub fn around(kernel: &str) -> Option<Vec<String>> {
    let of_room =
        |room: &str| kernel.strip_prefix(room).is_some_and(|variant| variant.starts_with('_'));
    let pair = pairs::ALL.iter().find(|pair| pair.rooms.iter().any(|room| of_room(room)))?;
    let arguments = ["run", pair.name, "--iterations", "3", "--warmup", "0"];
    Some(arguments.map(str::to_owned).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_launched_by_its_name() {
        assert_eq!(launching("memory_read_16", 3).join(" "), "launch memory_read_16 --times 3");
    }

    #[test]
    fn what_is_around_a_kernel_is_a_pair_of_its_room() {
        let command = |kernel| around(kernel).map(|arguments| arguments.join(" "));
        let run = "run paged_attention --iterations 3 --warmup 0";
        assert_eq!(command("paged_attention_decode_split_bf16_d128_g8").as_deref(), Some(run));
        assert_eq!(command("paged_attentions_x"), None);
        assert_eq!(command("memory_read_16"), None);
    }
}
