"""The part of a script that trains: TRL's trainer of the objective, in the order of the run."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from trl import DPOTrainer, KTOTrainer, SFTTrainer  # noqa: F401 - a script names one of them
from trl.experimental.orpo import ORPOTrainer  # noqa: F401

from engine.export.script.facts import facts
from engine.export.script.worker.batches import ACCUMULATE, BATCH, Batches, collate, length_of
from engine.export.script.worker.model import orthogonality
from engine.export.script.worker.preference_batches import chosen_tokens, collate_preferences, rows_of, with_mismatched

LOSSES = facts.loss_weights  # by name


class Trainer(facts.trl_trainer):  # type: ignore[misc,name-defined]
    """TRL's trainer with the run's order of rows and its evaluation."""

    def get_train_dataloader(self) -> Any:
        batches = Batches(
            list(self.train_dataset), lambda: self.state.global_step // math.ceil(len(batches) / ACCUMULATE)
        )
        if facts.learns_preferences:
            return DataLoader(batches, batch_size=None, collate_fn=collate_preferences)
        return DataLoader(batches, batch_size=None, collate_fn=collate)

    if facts.learns_preferences:
        if facts.objective.has_reference:

            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset  # it is tokenized already

        else:

            def tokenize_row(self, *_: Any, **__: Any) -> dict[str, Any]:
                """Return nothing: rows are tokenized already."""
                return {}

        def get_batch_samples(self, *args: Any) -> Any:
            """Return the batches of an optimizer step."""
            batches, items = super().get_batch_samples(*args)
            self.begin_step(batches)
            return self.step, items

        def begin_step(self, batches: list[Any]) -> None:
            """Prepare the batches that are averaged together."""
            self.step = [self._prepare_inputs(batch) for batch in batches]
            if facts.estimates_kl:
                # The run estimates the KL over a whole step, TRL over each batch: every batch gets that of the step.
                ask = super()._compute_kl_logps
                reference = [self.compute_ref_log_probs(self.model, batch) for batch in self.step]
                with self.compute_loss_context_manager():
                    self.kl_logps = torch.cat([ask(self.model, batch) for batch in self.step])
                reference_kl = torch.cat([kl for _, kl in reference])
                for batch, (logps, _) in zip(self.step, reference, strict=True):
                    batch |= {"ref_logps": logps, "ref_KL_logps": reference_kl}
                self.precompute_ref_logps = True  # batches have them from now on

        def share(self, batch: Any, count: Callable[[Any], int]) -> float:
            """Return the weight of a batch in its step; TRL weighs all batches equally, and the last may be smaller."""
            return len(self.step) * count(batch) / sum(map(count, self.step))

        if facts.estimates_kl:

            def _compute_kl_logps(self, *_: Any) -> Any:
                return self.kl_logps

    if facts.objective.trains_prompts:

        def concatenated_forward(self, model: Any, batch: Any) -> Any:
            """Average the likelihood over the tokens of the whole step."""
            outputs = list(super().concatenated_forward(model, batch))
            outputs[4] = outputs[4] * self.share(batch, chosen_tokens)
            self.pairs = self.share(batch, rows_of)
            return tuple(outputs)

        def odds_ratio_loss(self, *args: Any) -> Any:
            """Average the odds over the pairs of the whole step."""
            odds, *others = super().odds_ratio_loss(*args)
            return odds * self.pairs, *others

    if facts.averages_rows or facts.config.adapter.traits.regularized:

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            """Return TRL's loss, averaged over all rows of a step as in the run."""
            if facts.averages_rows and facts.averages_tokens:
                rows, tokens = self.share(inputs, rows_of), self.share(inputs, chosen_tokens)
                self.loss_weights = [weight * (tokens if name == "sft" else rows) for name, weight in LOSSES.items()]
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if facts.averages_rows and not facts.averages_tokens:
                loss = loss * self.share(inputs, rows_of)
            if facts.config.adapter.traits.regularized and facts.learns_preferences:
                loss = loss + orthogonality(model) if self.model.training else loss
            if facts.config.adapter.traits.regularized and not facts.learns_preferences:
                # Added once to each optimizer step.
                loss = loss + orthogonality(model) / self.current_gradient_accumulation_steps
            return loss

    if facts.measures:

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            """Log and return the mean loss of the held-out rows, averaged as the training loss is."""
            self.model.eval()
            if facts.config.model.quantization == "int8":
                for module in self.model.modules():
                    if type(module).__name__ == "Linear8bitLt" and not hasattr(module, "lora_A"):
                        module.train()  # otherwise its inputs would be rounded too, unlike in training
            if facts.measures_base_first and self.state.global_step == 0:
                with self.model.disable_adapter():
                    metrics = {"eval_loss": self.held_out_loss()}
            else:
                metrics = {"eval_loss": self.held_out_loss()}
            self.log(dict(metrics))
            self.model.train()
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
            return metrics

        def held_out_loss(self) -> float:
            """Return the mean loss of the held-out rows."""
            rows = sorted(self.eval_dataset, key=lambda row: -length_of(row))
            if facts.learns_preferences:
                if facts.estimates_kl:
                    rows = with_mismatched(rows)
                self.begin_step(
                    [collate_preferences(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
                )
                losses = [self.prediction_step(self.model, one, prediction_loss_only=True)[0] for one in self.step]
                return float(sum(losses)) / len(losses)
            total, tokens = 0.0, 0
            with torch.no_grad(), self.compute_loss_context_manager():
                for start in range(0, len(rows), BATCH):
                    if facts.config.training.packing:
                        batch = collate([[row] for row in rows[start : start + BATCH]])
                    else:
                        batch = collate(rows[start : start + BATCH])
                    batch = {name: values.to(self.args.device) for name, values in batch.items()}
                    labels = batch.pop("labels")[:, 1:].flatten()
                    length = batch["input_ids"].shape[1]  # without virtual tokens
                    logits = self.model(**batch).logits[:, -length:-1].flatten(0, 1)
                    mask = labels != -100
                    total += cross_entropy(logits[mask].float(), labels[mask], reduction="sum").item()
                    tokens += int(mask.sum())
            return total / tokens
