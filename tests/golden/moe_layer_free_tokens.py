"""Records tests/golden/moe_layer/emo_free_tokens: an MoE layer in which single tokens are free of their document's pool.

Written from the formulas alone (golden README of the other cases, spec 0, 2 and 3), in numpy; nothing of emox is read or
called. Everything is computed in float64 from float32 inputs; gradients are checked against central differences here,
before anything is written.

    python3 tests/golden/moe_layer_free_tokens.py OUTPUT_FOLDER
"""

import json
import os
import sys

import numpy as np

B, S, D, F = 2, 32, 24, 16  # rows, positions, model width, expert width
N, SHARED, K = 9, 1, 3  # experts and slots, both with the shared one
NR, KR = N - SHARED, K - SHARED
EOS = 5
A_LB, B_Z = 2.0, 0.5
T = B * S
DIV = B * (S - 1)


def inputs():
    g = np.random.Generator(np.random.PCG64(20261130))

    def normal(*shape, scale):
        return (g.standard_normal(shape) * scale).astype(np.float32)

    case = {
        "x": normal(B, S, D, scale=1.0),
        "router_weight": normal(N, D, scale=0.3),
        "w1": normal(N, F, D, scale=0.3),
        "w2": normal(N, F, D, scale=0.3),
        "w3": normal(N, F, D, scale=0.3),
        "output_cotangent": normal(B, S, D, scale=0.3),
    }
    ids = g.integers(6, 40, size=(B, S), dtype=np.int32)
    ids[0, [9, 20]] = EOS
    ids[1, [0, 13, 14, 31]] = EOS
    case["token_ids"] = ids
    case["free"] = (g.random((B, S)) < 0.5).astype(np.int32)
    return case, g


def segments_of(ids):
    """Owner rule: an EOS belongs to the document that it ends."""
    rows = []
    for r in range(B):
        start = 0
        for e in range(S):
            if ids[r, e] == EOS or e == S - 1:
                rows.append((r, start, e + 1))
                start = e + 1
    return np.array(rows, dtype=np.int32)


def silu(v):
    return v / (1 + np.exp(-v))


def dsilu(v):
    s = 1 / (1 + np.exp(-v))
    return s * (1 + v * (1 - s))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def run(c, segments, draws, dtype):
    """Forward and backward. Free tokens count in their document's scores like all others, but see no mask."""
    x = c["x"].reshape(T, D).astype(dtype)
    w, w1, w2, w3 = (c[k].astype(dtype) for k in ("router_weight", "w1", "w2", "w3"))
    cot = c["output_cotangent"].reshape(T, D).astype(dtype)
    free = c["free"].reshape(T)
    z = x @ w[:NR].T
    full = softmax(z)
    kept = np.zeros((len(segments), NR), np.int32)
    allowed = np.ones((T, NR), bool)
    pool_gap, pick_gap = np.inf, np.inf
    for i, (r, a, b) in enumerate(segments):
        scores = full[r * S + a : r * S + b].sum(axis=0)
        order = np.argsort(-scores, kind="stable")
        kept[i, order[: draws[i]]] = 1
        if draws[i] < NR:
            pool_gap = min(pool_gap, scores[order[draws[i] - 1]] - scores[order[draws[i]]])
        for t in range(r * S + a, r * S + b):
            if not free[t]:
                allowed[t] = kept[i] == 1
    masked = np.where(allowed, z, -np.inf)
    p = softmax(masked)
    top = masked.max(axis=1)
    lse = top + np.log(np.exp(masked - top[:, None]).sum(axis=1))
    order = np.argsort(-masked, axis=1, kind="stable")
    picks = order[:, :KR]
    for t in range(T):
        if allowed[t].sum() > KR:
            pick_gap = min(pick_gap, masked[t, order[t, KR - 1]] - masked[t, order[t, KR]])
    gates = np.take_along_axis(p, picks, axis=1)
    counts = np.bincount(picks.ravel(), minlength=NR)
    pbar = p.mean(axis=0)
    lb = NR / KR * (counts * pbar).sum() / DIV
    router_z = (lse**2).sum() / DIV

    y = np.zeros((T, D), dtype)
    grads = {k: np.zeros_like(v) for k, v in (("w1", w1), ("w2", w2), ("w3", w3))}
    dx = np.zeros((T, D), dtype)
    dp = np.tile((A_LB * NR / KR * counts / DIV / T).astype(dtype), (T, 1))
    slots = [(j, picks[:, j], gates[:, j]) for j in range(KR)]
    slots += [(None, np.full(T, NR + s), np.ones(T, dtype)) for s in range(SHARED)]
    for j, experts, gate in slots:
        for e in np.unique(experts):
            rows = np.nonzero(experts == e)[0]
            xe = x[rows]
            h1, h3 = xe @ w1[e].T, xe @ w3[e].T
            h = silu(h1) * h3
            out = h @ w2[e]
            y[rows] += gate[rows, None] * out
            if j is not None:
                dp[rows, e] += (cot[rows] * out).sum(axis=1)
            dout = gate[rows, None] * cot[rows]
            dh = dout @ w2[e].T
            dh1, dh3 = dh * h3 * dsilu(h1), dh * silu(h1)
            grads["w1"][e] += dh1.T @ xe
            grads["w2"][e] += h.T @ dout
            grads["w3"][e] += dh3.T @ xe
            dx[rows] += dh1 @ w1[e] + dh3 @ w3[e]
    dz = p * (dp - (p * dp).sum(axis=1, keepdims=True)) + (2 * B_Z / DIV * lse)[:, None] * p
    dx += dz @ w[:NR]
    dw = np.zeros_like(w)
    dw[:NR] = dz.T @ x
    shared_ids = np.tile(np.arange(NR, N), (T, 1))
    return {
        "kept": kept,
        "topk_ids": np.concatenate([picks, shared_ids], 1).astype(np.int32).reshape(B, S, K),
        "gates": np.concatenate([gates, np.ones((T, SHARED), dtype)], 1).reshape(B, S, K),
        "y": y.reshape(B, S, D),
        "grad_x": dx.reshape(B, S, D),
        "grad_router_weight": dw,
        "grad_w1": grads["w1"],
        "grad_w2": grads["w2"],
        "grad_w3": grads["w3"],
        "balance_loss": float(lb),
        "router_z": float(router_z),
        "objective": float((y * cot).sum() + A_LB * lb + B_Z * router_z),
        "pool_gap": float(pool_gap),
        "pick_gap": float(pick_gap),
        "outside": int(sum((kept[i][picks[r * S + a : r * S + b]] == 0).sum() for i, (r, a, b) in enumerate(segments))),
    }


def check_gradients(c, segments, draws, result, g):
    for name in ("x", "router_weight", "w1", "w2", "w3"):
        for _ in range(4):
            direction = g.standard_normal(c[name].shape)
            h = 1e-6
            side = []
            for sign in (1, -1):
                moved = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in c.items()}
                moved[name] = moved[name] + sign * h * direction
                side.append(run(moved, segments, draws, np.float64)["objective"])
            want = (side[0] - side[1]) / (2 * h)
            got = float((result["grad_" + name] * direction).sum())
            assert abs(got - want) < 1e-6 * max(1.0, abs(want)), (name, got, want)


def write(folder, c, segments, draws, exact, rough):
    meaning = {
        "x": "input (B, S, d_model)", "router_weight": "(N, d_model)",
        "w1": "(N, d_ff, d_model): gate, used as x . w1[e]^T", "w2": "(N, d_ff, d_model): down, used as h . w2[e]",
        "w3": "(N, d_ff, d_model): up, used as x . w3[e]^T", "output_cotangent": "G (B, S, d_model)",
        "token_ids": "(B, S)", "free": "(B, S): 1 where the token is not limited to its document's pool",
        "segments": "(segments, 3): row, start, end", "draws": "pool size of each segment",
        "kept": "(segments, n_r)", "topk_ids": "(B, S, top_k), shared last", "gates": "(B, S, top_k)",
        "y": "output (B, S, d_model)",
    }
    files = []

    def tolerance(name):
        distance = float(np.max(np.abs(np.asarray(exact[name]) - np.asarray(rough[name], np.float64))))
        floor = 64 * 2.0**-23 * float(np.max(np.abs(exact[name])))
        return {"tolerance_abs": float(f"{max(8 * distance, floor):.2g}"), "float32_run": distance}

    def put(name, array, role):
        array = np.ascontiguousarray(array)
        np.save(os.path.join(folder, name + ".npy"), array)
        entry = {"file": name + ".npy", "dtype": str(array.dtype), "shape": list(array.shape),
                 "meaning": meaning.get(name, "d objective / d " + name.removeprefix("grad_")), "role": role}
        files.append(entry | (tolerance(name) if role == "output" else {}))

    os.makedirs(folder, exist_ok=True)
    for name in ("x", "router_weight", "w1", "w2", "w3", "output_cotangent"):
        put(name, c[name], "input")
    for name, array in (("token_ids", c["token_ids"]), ("free", c["free"]), ("segments", segments), ("draws", draws),
                        ("kept", exact["kept"]), ("topk_ids", exact["topk_ids"])):
        put(name, array, "exact")
    for name in ("gates", "y", "grad_x", "grad_router_weight", "grad_w1", "grad_w2", "grad_w3"):
        put(name, exact[name], "output")
    scalars = {"experts": N, "shared": SHARED, "top_k": K, "d_model": D, "d_ff": F, "batch": B, "sequence": S, "eos": EOS,
               "eos_convention": "owner", "divisor": DIV, "a": A_LB, "b": B_Z, "smallest_pool_gap": exact["pool_gap"],
               "smallest_pick_gap": exact["pick_gap"], "picks_outside_of_the_pool": exact["outside"]}
    results = ("balance_loss", "router_z", "objective")
    case = {
        "case": "moe_layer/emo_free_tokens",
        "what": "moe_layer/emo with tokens that are free of their document's pool; made by moe_layer_free_tokens.py",
        "scalars": scalars | {k: exact[k] for k in results},
        "files": files,
        "scalar_tolerance_abs": {k: tolerance(k) for k in results},
        "tolerance_why": "8 times the distance of one plain float32 run from the float64 result, at least 64 float32 "
                         "roundings of the largest value; discrete files must match exactly",
    }
    with open(os.path.join(folder, "case.json"), "w") as out:
        json.dump(case, out, indent=1)
        out.write("\n")


def main():
    c, g = inputs()
    segments = segments_of(c["token_ids"])
    draws = np.array([(2, 3, NR, 2, 4)[i % 5] for i in range(len(segments))], np.int32)
    exact, rough = run(c, segments, draws, np.float64), run(c, segments, draws, np.float32)
    assert exact["pool_gap"] > 1e-3 and exact["pick_gap"] > 1e-3, (exact["pool_gap"], exact["pick_gap"])
    assert exact["outside"] > 20, exact["outside"]
    assert all((exact[k] == rough[k]).all() for k in ("kept", "topk_ids"))
    check_gradients(c, segments, draws, exact, g)
    write(sys.argv[1], c, segments, draws, exact, rough)
    print(f"pool gap {exact['pool_gap']:.2g}, pick gap {exact['pick_gap']:.2g}, {exact['outside']} picks outside, "
          f"sizes {list(map(int, draws))} of {NR}, {int(c['free'].sum())} of {T} tokens free")


main()
