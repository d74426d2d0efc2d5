#!/usr/bin/env python3
"""Times emox beside a PyTorch training step, in turn on the same machine, and prints the ratio pair by pair.

    tests/bench/pytorch.py --peer pytorch_step.py [--preset small mid] [--threads 1 2] [--pairs 3]

The peer is a program that takes --preset, --threads, --steps, --warmup-steps and prints one JSON object with tokens_per_s and
gemm_gflops on its last line. Only the peer needs PyTorch. Both GEMM rates are printed, because a library that is slow on this
processor would decide the comparison alone.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys


def last_json(command, environment):
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", required=True, help="the PyTorch program")
    p.add_argument("--emox", default="build/release/launch/emox")
    p.add_argument("--preset", nargs="+", default=["small", "mid"], choices=["small", "mid"])
    p.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    p.add_argument("--pairs", type=int, default=3)
    p.add_argument("--steps", type=int, default=5)
    a = p.parse_args()
    print("preset threads   emox tok/s  GEMM GF/s  ratio to floor | peer tok/s  GEMM GF/s | emox / peer")
    for preset in a.preset:
        for threads in a.threads:
            environment = {"OMP_NUM_THREADS": str(threads)}
            ratios = []
            for _ in range(a.pairs):
                ours = last_json([a.emox, "bench", "step", f"--preset={preset}", f"--steps={a.steps}", "--json"], environment)
                peer = last_json([sys.executable, a.peer, "--preset", preset, "--threads", str(threads), "--steps", str(a.steps),
                                  "--warmup-steps", "2"], environment)
                ratios.append(ours["tokens_per_s"] / peer["tokens_per_s"])
                print(f"{preset:<6} {threads:>7} {ours['tokens_per_s']:>12.0f} {ours['gemm_gflops']:>10.0f} {ours['ratio']:>15.3f} |"
                      f" {peer['tokens_per_s']:>10.0f} {peer['gemm_gflops']:>10.0f} | {ratios[-1]:.2f}", flush=True)
            print(f"{preset:<6} {threads:>7} median of {len(ratios)} pairs: {statistics.median(ratios):.2f} on {ours['processor']}")


if __name__ == "__main__":
    main()
