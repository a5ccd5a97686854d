"""What `--help` prints: written text for each command, groups and keys from the configs."""

import textwrap

from outlie import catalog

WIDTH = 100
NO_BREAK = "\N{NO-BREAK SPACE}"  # a choice and its presets stay on one line
OPTIONS = """options:
  --config-dir DIR   your own configs, searched before ours; may be repeated
  --config FILE      a stored run's config.yaml: its values are the base, overrides go on top
  -m, --multirun     train, distill: every combination of values, detector=a,b; run sweep --help
  --help, --version"""

EXPLAINED = {
    "train": """Usage: run train [GROUP=CHOICE] [KEY=VALUE] [options]

Trains or fits a detector on a dataset, evaluates it, stores the run in outputs/train/.
The same command again finds the finished run and prints it; an interrupted one goes on where it stopped.

examples:
  run train                                          DDPM on a dataset that needs no download
  run train detector=knn detector.k=10 seed=1
  run train dataset=adbench/thyroid detector=dte_c/paper
  run train dataset=csv dataset.path=rows.csv dataset.label=is_fraud
  run train dataset=fashion_ood backbone=resnet18 detector=neco
  run train detector=knn dry_run=true                print the config and the plan, and stop
  run train --config outputs/train/RUN/config.yaml trainer=gpu""",
    "sweep": """Usage: run sweep KEY=VALUE,VALUE... [options]      the same as: run train -m ...

Computes a run for every combination of values, several at once, each in a folder of its own. What is done is found,
what failed is tried again; a failure is shown at once and stops nothing. A killed sweep goes on with the same command.

values:
  detector=knn,vae           seed=range(5)             dataset=glob(adbench/w*)      Hydra's sweep grammar
  dataset=adbench/small      several datasets at once; also adbench/classical, /large, /cv, /nlp, /all
  launcher=local|slurm|ray   where to compute; launcher.jobs=4 processes (run show launcher local)
  search=tpe                 choose values instead of trying all, on rows held out for it (run list search)

examples:
  run train -m detector=diffusion,dte_c dataset=adbench/small 'seed=range(5)'
  run sweep detector=dte_c 'detector.bins=3,7,15' 'seed=range(3)' metrics=fast
  run sweep detector=knn,lof dataset=adbench/classical dry_run=true      the cells, and which are done
  run distill -m teacher=RUN distiller=glob(ablation/*)""",
    "distill": """Usage: run distill teacher=RUN [backbone=STUDENT] [distiller=METHOD] [KEY=VALUE] [options]

Trains a small student from a finished run, evaluates both, and shows what the student gives up and what it saves. The
teacher's config is the base, so dataset, detector and metrics are its own; the student's run is stored in
outputs/distill/ and is a run like any other.
A classifier or a segmenter is distilled into a smaller network: backbone=STUDENT. A slow detector is distilled into one
pass: distiller=scores.

examples:
  run distill teacher=digits_ood-neco backbone=resnet10 distiller=hinton
  run distill teacher=camvid-knn-1a2b3c4d backbone=pspnet_r18 distiller=gdd distiller.calibrate=1
  run distill teacher=breast_cancer-diffusion distiller=scores
  run distill teacher=1a2b3c4d backbone=resnet10 seed=1 dry_run=true""",
    "eval": """Usage: run eval run=RUN [GROUP=CHOICE] [KEY=VALUE] [options]

Scores a finished run again. The run's own config is the base; overrides go on top.
RUN is a folder, its name below outputs/train, the beginning of that name, or the hash at its end.

examples:
  run eval run=breast_cancer-knn-1a2b3c4d
  run eval run=1a2b3c4d metrics=fast
  run eval run=1a2b3c4d explain=true
  run eval run=digits_ood-neco detectors=all         every post-hoc score over one forward pass
  run eval run=digits_ood-neco 'detectors=[neco,vim,odin]'""",
    "probe": """Usage: run probe run=RUN [KEY=VALUE] [options]

Trains a linear classifier on the features of every block of a run's denoiser, at every noise level, in one pass, and
chooses block and noise by training images that are held out. Into outputs/probe/.

examples:
  run probe run=fashion_ood-knn-1a2b3c4d
  run probe run=1a2b3c4d 'log_snr=[6,5,4]' 'blocks=[out_3,out_4]'
  run probe run=1a2b3c4d augment=crop_flip rows=null test_rows=null     as published; for a GPU""",
    "sample": """Usage: run sample run=RUN [KEY=VALUE] [options]

Samples images from a run's denoiser with its usual sampler, and measures the Frechet distance between their features
and those of as many training images; into outputs/sample/. The features are the run's own, so this is no FID; FID takes
the weights of its own network: inception=FILE.

examples:
  run sample run=fashion_ood-ddae-1a2b3c4d
  run sample run=1a2b3c4d n=10000
  run sample run=1a2b3c4d n=50000 inception=pt_inception-2015-12-05.pth""",
    "score": """Usage: run score run=RUN input=FILE output=FILE [KEY=VALUE] [options]

Scores new rows or images with a finished run, in batches, so that the input may be larger than memory. The output has
a row for each: score, conformal p-value, and flag, ask or pass at the false-alarm budgets fpr= and review=.

examples:
  run score run=breast_cancer-knn input=new.csv output=scored.csv
  run score run=1a2b3c4d input=new.parquet output=scored.parquet fpr=0.01 review=0.05 'keep=[customer]'
  run score run=1a2b3c4d input=images/ output=scored.csv
  run score run=1a2b3c4d input=june.csv output=june_2.csv feedback=reviewed.csv timestamp=when""",
    "export": """Usage: run export run=RUN [file=MODEL.onnx] [KEY=VALUE] [options]

Writes preprocessing, network and score of a finished run as one ONNX graph, runs it under ONNX Runtime on the run's
test rows, and refuses it where a score or a verdict differs. Into outputs/export/. Needs pip install 'outlie[export]'.

examples:
  run export run=breast_cancer-knn-1a2b3c4d
  run export run=1a2b3c4d file=detector.onnx rows=null
  run export run=1a2b3c4d opset=20""",
    "bench": """Usage: run bench runs=[RUN,RUN,...] | runs=all [KEY=VALUE] [options]

Times finished runs and their exports on this machine in one session, interleaved in rounds: latency percentiles,
throughput, memory, parameters and FLOPs, and recall at 1 % false alarms against latency. Into outputs/bench/.

examples:
  run bench runs=all
  run bench 'runs=[breast_cancer-knn,breast_cancer-diffusion]' seconds=0.2
  run bench 'runs=[1a2b3c4d,detector.onnx]' 'batch_sizes=[1,64]' threads=2""",
    "table": """Usage: run table NAME [KEY=VALUE]

Computes the cells of a paper's table that are missing and whose data are here, then prints published mean and std,
ours, and whether ours is inside published ± 2 std (at least 1 point); means over the rows that both have, average
ranks, Friedman's test; what is absent, missing or failed, by name. run list table says which tables there are.
Into outputs/table/NAME: the table as Markdown, LaTeX, CSV and HTML, cells.csv with every cell, cd.svg.

  metric=       one of the table's (auroc, average_precision, f1_at_k); its first by default
  seeds=        so many, from 0; the table's own number by default
  columns=      some of its columns, in this order
  rows=         some of its rows, or a group of datasets: adbench/small
  max_rows=     datasets that are known to have at most so many rows
  compute=      false = only what is there
  intervals=    true = a bootstrap interval over test rows for every cell, from its stored scores, into cells.csv
  leak_free=    false = without the protocol that has no leak beside the paper's
  stats=        false = no test and no diagram
  format=       terminal, markdown, latex, csv or html
  output=       a file for it
  launcher=     where cells are computed: run list launcher
  logger=       wandb = the files as an artifact of W&B, offline without an account
  output_dir=   where runs are; outputs by default

examples:
  run table dte_semi compute=false
  run table dte_semi rows=adbench/small columns=[DTE-NP,KNN,IForest] seeds=2
  run table dte_semi metric=average_precision format=latex output=table.tex""",
    "report": """Usage: run report [runs=NAME|GLOB|FOLDER|[...]] [table=NAME] [output=FILE.html] [KEY=VALUE]

Writes one HTML page about runs, readable on a phone, in print and without a network: the numbers of every detector on
every dataset, ROC and precision-recall curves, scores with the threshold, recall against latency, ranks, training
curves, configs, environments, costs, and the command of each run. Runs that failed or are not finished are listed.

  runs=         names, their beginnings, hashes, globs or folders; every run of output_dir by default
  table=        a paper's table beside these runs' numbers, or several: run list table
  output=       the file; output_dir/report.html by default
  title=        of the page
  output_dir=   where runs are; outputs by default

examples:
  run report
  run report runs='adbench_cardio-*' output=cardio.html title='Cardiotocograms'
  run report 'runs=[breast_cancer-knn,1a2b3c4d]'
  run report runs=/data/sweep/outputs/train table=dte_semi""",
    "figure": """Usage: run figure NAME [file=PICTURE.png|.svg] [seed=N] [KEY=VALUE]

Draws a figure of a paper, and writes a table of its numbers beside it; into outputs/figures/ by default.

  iwae_mixture          q_EW on a mixture in the plane, k = 1, 10, 100 (Cremer et al. 2017)
  iwae_one_d            resampling from q_EW, and q~_IW for single draws, in one dimension
  iwae_posterior        the true posterior of a trained model with two latent dimensions, q, and draws from q_EW
  iwae_reconstructions  MNIST digits reconstructed from q and from q_EW

The last two train experiment=mnist_iwae_2d_cpu, or find it trained; KEY=VALUE are overrides of that training.

examples:
  run figure iwae_mixture
  run figure iwae_one_d file=one_d.svg seed=1
  run figure iwae_posterior detector.epochs=2""",
    "list": """Usage: run list [GROUP] [--json] [--config-dir DIR]

Lists what exists: every group, or one of them, with one line about each choice.

examples:
  run list
  run list detectors
  run list datasets --json""",
    "show": """Usage: run show NAME | GROUP NAME | RUN_FOLDER

Shows one choice: what it is, its paper, every option with type, default and meaning. Or the summary of a finished run.

examples:
  run show dte_c
  run show detector dte_c/paper
  run show outputs/train/breast_cancer-knn-1a2b3c4d""",
    "completion": """Usage: run completion bash | zsh

Prints a script that completes commands, choices, keys and files, for `run` and for `outlie`.

examples:
  eval "$(run completion bash)"      in ~/.bashrc
  eval "$(run completion zsh)"       in ~/.zshrc""",
}


def overview(commands: dict[str, str]) -> str:
    """What `run --help` prints."""
    lines = [f"  {name:<12}{text}" for name, text in commands.items()]
    return "\n".join(
        [
            "Usage: run COMMAND [OVERRIDES]",
            "",
            "Anomaly and out-of-distribution detection experiments. Overrides are GROUP=CHOICE and KEY=VALUE.",
            "",
            "commands:",
            *lines,
            "",
            "examples:",
            "  run train                           a diffusion detector on a dataset that needs no download",
            "  run train detector=knn detector.k=10",
            "  run list detectors",
            "  run show knn",
            "",
            OPTIONS,
            "",
            "run COMMAND --help says more about one.",
        ]
    )


def command(name: str, config_dirs: tuple[str, ...] = ()) -> str:
    """What `run COMMAND --help` prints."""
    if name not in ("train", "distill", "eval", "probe", "sample", "score", "export", "bench"):
        return EXPLAINED[name]
    where = catalog.roots(config_dirs)
    lines = [EXPLAINED[name], "", "groups (run list GROUP, run show CHOICE):"]
    for group in (
        catalog.sections(where) if name not in ("probe", "sample", "score", "export", "bench") else ["trainer"]
    ):
        known = _folded(list(catalog.choices(group, where)))
        only = {"experiment": "train", "distiller": "distill"}
        if known and only.get(group, name) == name:
            lines += _wrapped(f"  {group:<12}", ", ".join(known))
    lines += ["", "keys:"]
    for key in catalog.keys(catalog.primary(name, where)):
        lines += _wrapped(f"  {key.name + '=' + key.default:<19} ", key.doc)
    lines += ["  Every group has keys of its own, detector.k=10: run show knn lists them", "", OPTIONS]
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines] or [head.rstrip()]


def _folded(names: list[str]) -> list[str]:
    """`adbench/...` once for its many, `dte_c (/paper)` for presets."""
    folded = []
    for name in names:
        if "/" not in name:
            below = [one.partition("/")[2] for one in names if one.startswith(name + "/")]
            folded.append(f"{name}{NO_BREAK}(/{', /'.join(below)})" if below else name)
        elif name.partition("/")[0] not in names:
            folder = name.partition("/")[0]
            below = [one.partition("/")[2] for one in names if one.startswith(folder + "/")]
            many = f"{folder}/... ({len(below)} of them)"
            folded += [name] if len(below) < 4 else [] if many in folded else [many]
    return folded
