#!/usr/bin/env python3
"""Training speed on the CPU: `sinkhorn bench --case cpu` beside the published PyTorch package, in turns.

    python3 -m venv venv && venv/bin/pip install torch sinkhorn_transformer==0.11.4
    venv/bin/python tools/compare_package.py --program build/cpu/sinkhorn --threads 2

Both train the same model (`cpu` in tools/bench_cases.cpp) on the same shape of batch in f32: forward, backward,
clipping, AdamW. They take turns; of each turn the fastest step counts, since what else runs can only make it slower,
and of the turns the median. Use a quiet machine: PyTorch's threads wait for one another by spinning, so that a busy one
strikes it harder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings

BATCH, LENGTH, TOKENS = 8, 512, 128


def package_steps(threads, steps):
    """Milliseconds of each step of the package, after three that are not counted."""
    import torch
    from sinkhorn_transformer import SinkhornTransformerLM

    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = SinkhornTransformerLM(
        num_tokens=TOKENS, dim=128, depth=4, max_seq_len=LENGTH, heads=4, bucket_size=32, causal=True,
        n_local_attn_heads=2, n_top_buckets=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.1)
    ids, targets = (torch.randint(TOKENS, (BATCH, LENGTH)) for _ in range(2))
    times = []
    for _ in range(3 + steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids).reshape(-1, TOKENS), targets.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(1000 * (time.perf_counter() - start))
    return times[3:]


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended in {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/cpu/sinkhorn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn")
    parser.add_argument("--package-turn", action="store_true", help=argparse.SUPPRESS)  # this script, as its own child
    options = parser.parse_args()
    if options.package_turn:
        print(json.dumps(package_steps(options.threads, options.steps)))
        return

    common = ["--threads", str(options.threads), "--steps", str(options.steps)]
    fastest = {"sinkhorn": [], "package": []}
    for turn in range(options.turns):
        ours = run([options.program, "bench", "--case", "cpu", "--json", "-", *common])
        fastest["sinkhorn"].append(min(ours["cases"][0]["samples_ms"]))
        fastest["package"].append(min(run([sys.executable, __file__, "--package-turn", *common])))
        figures = ", ".join(f"{name} {times[-1]:.1f} ms" for name, times in fastest.items())
        print(f"turn {turn + 1}: {figures}", flush=True)
    ms = {name: statistics.median(times) for name, times in fastest.items()}
    for name, median in ms.items():
        print(f"{name:9} {median:6.1f} ms a step, {1000 * BATCH * LENGTH / median:,.0f} tokens per second")
    ratio, load = ms["package"] / ms["sinkhorn"], os.getloadavg()[0]
    print(f"{ratio:.2f} times the package, {options.threads} threads, load {load:.1f}")


if __name__ == "__main__":
    main()
