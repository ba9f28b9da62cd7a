"""TRL's trainers on pairs in tokens, one process a measurement; runs in TRL's own environment, see `compare.py`.

python trl_peer.py --task=dpo --model=DIR --pairs=pairs.json --to=OUT --dtype=float32 --batch=4 [--check=5]
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer


class Clock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        self._start = time.monotonic()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.monotonic() - self._start)


def in_order(trainer_class):
    """The trainer, taking pairs in the order in which they stand, and as the tokens that they are."""

    class InOrder(trainer_class):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

    return InOrder


def make_trainer(args, records):
    settings = dict(
        output_dir=args.to + '.run',
        per_device_train_batch_size=args.batch,
        num_train_epochs=1,
        max_steps=args.check or -1,
        gradient_accumulation_steps=args.accumulate,
        learning_rate=1e-4 if args.check else 1e-6,
        lr_scheduler_type='constant',
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy='no',
        report_to='none',
        use_cpu=True,
        bf16=args.dtype == 'bfloat16',
        gradient_checkpointing=False,
        max_length=None,
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if args.task == 'dpo':
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        columns = ('prompt_ids', 'chosen_ids', 'rejected_ids')
        config = DPOConfig(**settings, beta=0.1, precompute_ref_log_probs=args.precompute)
        kind = DPOTrainer
    else:
        model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1, dtype=torch.float32)
        records = [{side: record[f'whole_{side}'] for side in ('chosen_ids', 'rejected_ids')} for record in records]
        columns, config, kind = ('chosen_ids', 'rejected_ids'), RewardConfig(**settings), RewardTrainer
    dataset = Dataset.from_list([{name: record[name] for name in columns} for record in records])
    more = dict(peft_config=adapters(args.lora)) if args.lora else {}
    return in_order(kind)(model=model, args=config, train_dataset=dataset, processing_class=tokenizer, **more)


def adapters(rank: int) -> LoraConfig:
    """Adapters on every matrix of a layer, as ours."""
    return LoraConfig(r=rank, lora_alpha=16, target_modules='all-linear', task_type='CAUSAL_LM')


def first_gradient(trainer, path: Path, accumulate: int) -> list[float]:
    """Write the gradient of the first step's mean loss by parameter; its replies' scores, all chosen ones first."""
    model, scores = trainer.model, []
    model.train()

    def note(module, inputs, output):
        if not torch.is_grad_enabled():  # the reference, which with adapters is the same module
            return
        found = output.log_probs.sum(-1) if getattr(output, 'log_probs', None) is not None else output.logits[:, 0]
        scores.append(found.detach().float().chunk(2))

    hook = model.register_forward_hook(note)
    for batch, _ in zip(trainer.get_train_dataloader(), range(accumulate), strict=False):
        (trainer.compute_loss(model, batch) / accumulate).backward()
    hook.remove()
    np.savez(path, **{name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    return [score for side in zip(*scores, strict=True) for part in side for score in part.tolist()]


def main():
    parser = argparse.ArgumentParser()
    for name in ('task', 'model', 'pairs', 'to', 'dtype'):
        parser.add_argument(f'--{name}', required=True)
    parser.add_argument('--batch', type=int, required=True)
    parser.add_argument('--accumulate', type=int, default=1)
    parser.add_argument('--check', type=int, default=0, help='Compare the numbers of so many steps instead of speed.')
    parser.add_argument('--precompute', action='store_true')
    parser.add_argument('--lora', type=int, default=0, help='Rank of adapters; 0: all parameters are trained.')
    args = parser.parse_args()
    torch.set_num_threads(2)
    records = json.loads(Path(args.pairs).read_text())
    start = time.monotonic()
    clock, trainer = Clock(), make_trainer(args, records)
    precompute_seconds = time.monotonic() - start if args.precompute else 0.0
    result, step = {}, args.batch * args.accumulate
    if args.check:
        result['scores'] = first_gradient(trainer, Path(args.to + '.npz'), args.accumulate)
    trainer.add_callback(clock)
    trainer.train()
    result |= dict(
        seconds=clock.seconds,
        pairs=[min(step, len(records) - at) for at in range(0, len(records), step)][: len(clock.seconds)],
        losses=[entry['loss'] for entry in trainer.state.log_history if 'loss' in entry],
        precompute_seconds=precompute_seconds,
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )
    Path(args.to).write_text(json.dumps(result))


if __name__ == '__main__':
    main()
