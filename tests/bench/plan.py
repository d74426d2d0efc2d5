#!/usr/bin/env python3
"""What `emox plan` says of a step's time and memory on this machine, against what `emox bench step` measures.

    tests/bench/plan.py PATH/TO/emox [--ranks 1 2 4] [--repeats 3] [RECIPE.ini ...]

For each number of ranks the machine's rates are measured with as many (`emox bench rates`), then every recipe is planned and
timed; rates and steps take turns, since a shared machine changes its speed. Prints a table and the median and largest error.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile


def run(command):
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_mpi_yield_when_idle="1")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def last_json(text):
    return json.loads(text.strip().splitlines()[-1])


def sequence_length(emox, recipe):
    for line in run([emox, "train", recipe, "--print-config"]).splitlines():
        if line.startswith("sequence_length"):
            return int(line.split("=")[1].split("#")[0])
    sys.exit(f"{recipe}: no sequence_length")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emox")
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_intermixed_args()
    errors = []
    print(f"{'recipe':<16}{'ranks':>6}{'planned, s':>12}{'measured, s':>13}{'error':>8}{'planned MiB':>13}{'peak RSS':>10}{'error':>8}")
    for ranks in options.ranks:
        launcher = [] if ranks == 1 else ["mpirun", "-n", str(ranks)]
        results = {recipe: {"planned": [], "measured": [], "memory": [], "rss": []} for recipe in options.recipes}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as directory:
                rates = os.path.join(directory, "rates.json")
                run(launcher + [options.emox, "bench", "rates", "--steps", "5", "--dir", directory, "--output", rates])
                for recipe in options.recipes:
                    length = sequence_length(options.emox, recipe)
                    plan = last_json(run([options.emox, "plan", recipe, "--ranks", str(ranks), "--ranks-per-node", str(ranks),
                                          "--hardware", rates, "--document-tokens", str(length // 4), "--json"]))
                    step = last_json(run(launcher + [options.emox, "bench", "step", recipe, "--steps", "5", "--json"]))
                    r = results[recipe]
                    r["planned"].append(plan["step_s"])
                    r["measured"].append(step["step_s"])
                    r["memory"].append(plan["fit"]["needs_bytes"] / 2**20)
                    r["rss"].append(step["peak_rss_bytes"] / 2**20)
        for recipe, r in results.items():
            error = statistics.median(p / m - 1 for p, m in zip(r["planned"], r["measured"]))
            errors.append(abs(error))
            memory, rss = statistics.median(r["memory"]), statistics.median(r["rss"])
            name = os.path.basename(recipe).removesuffix(".ini")
            print(f"{name:<16}{ranks:>6}{statistics.median(r['planned']):>12.4f}{statistics.median(r['measured']):>13.4f}"
                  f"{100 * error:>7.1f}%{memory:>13.0f}{rss:>10.0f}{100 * (memory / rss - 1):>7.1f}%", flush=True)
    print(f"step time: median error {100 * statistics.median(errors):.1f} %, largest {100 * max(errors):.1f} %")


if __name__ == "__main__":
    main()
