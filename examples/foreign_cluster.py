"""Plan for a cluster that you do not own: nothing is downloaded, no device is touched.

python examples/foreign_cluster.py
"""

import llmpq


def main() -> None:
    model, cluster = "qwen2.5-14b", "1xRTX3090,1xT4"
    workload = llmpq.Batch(batch_size=16, prompt_len=1024, gen_len=256)
    plan = llmpq.make_plan(model, cluster, workload, time_limit_s=5.0)
    print(plan)
    for limit in llmpq.max_context(model, cluster, workload, precisions="w8a16"):
        print(f"longest context at {', '.join(limit.precisions)}: {limit.largest}; beyond it {'; '.join(limit.limited_by)}")
    rows = llmpq.whatif(model, cluster, workload, [("replace", "T4:0=L4")], prices=["RTX3090=0.22", "T4=0.11", "L4=0.43"])
    for row in rows:
        print(f"{row.change}: {row.tokens_per_s:.0f} tokens/s, {row.tokens_per_unit:,.0f} tokens for 1")


if __name__ == "__main__":
    main()
