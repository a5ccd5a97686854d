#!/bin/sh
# A student of CamVid (240 x 180) alone, alone for as long as distilling takes, and with GDD; seeds 0 to 2.
#   OUTLIE_DATA=... sh benchmarks/camvid_distillation.sh TEACHER_RUN OUTPUT_DIR [SEEDS]
# benchmarks/camvid_distillation.py writes benchmarks/camvid_distillation.csv from the runs.
set -e
teacher=$1 out=$2 seeds=${3:-0 1 2}
student="backbone=pspnet_r18/camvid_cpu metrics=fast trainer.threads=1 output_dir=$out"
run() { python -m outlie.cli "$@" | grep -E "IoU|outputs|error" || true; }
for seed in $seeds; do
  run train dataset=camvid detector=knn $student seed=$seed
  run distill teacher=$teacher $student seed=$seed distiller=gdd distiller.calibrate=1 'distiller.locations=[layer4:decoder.up3]'
  run train dataset=camvid detector=knn $student seed=$seed backbone.steps=${LONG:-1430}
done
