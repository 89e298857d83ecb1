"""A training step, data included, against the plain loop: each in a process of its own, by turns."""

from __future__ import annotations

from benchmarks.common import HEADER, in_process, ratio_line, street_data

ENCODERS = ("tf_efficientnet_lite0", "resnet18")


def main(rounds: int = 3, steps: int = 25) -> None:
    """Print the ratio table."""
    _, name = street_data()
    print(f"\n## Training step, data included ({name}, DeepLabV3+, batch 8, 256x256, seconds per step)\n\n{HEADER}")
    for encoder in ENCODERS:
        plain, ours, fp32, waits = [], [], [], []
        for _ in range(rounds):
            common = ["--encoder", encoder, "--steps", str(steps)]
            plain.append(in_process("benchmarks.plain", *common, "--no-score")["step_s"])
            result = in_process("benchmarks.ours", *common)
            ours.append(result["step_s"])
            waits.append(result["data_wait"])
            fp32.append(in_process("benchmarks.ours", *common, "--precision", "fp32")["step_s"])
        print(ratio_line(f"{encoder}, bf16 (data wait {100 * max(waits):.1f} %)", plain, ours))
        print(ratio_line(f"{encoder}, fp32", plain, fp32), flush=True)


if __name__ == "__main__":
    main()
