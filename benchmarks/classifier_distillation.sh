#!/bin/sh
# Which distillation keeps which OOD score: digits 0 to 7, 8 and 9 held out; a ResNet-10 of width 16 teaches one of width 8.
#   sh benchmarks/classifier_distillation.sh OUTPUT_DIR      then classifier_distillation.py OUTPUT_DIR writes the csv
set -e
out=$1
scores='detectors=[msp,max_logit,energy,deep_knn,mahalanobis]'
quick="metrics.latency=false trainer.threads=1 output_dir=$out"
student="backbone=resnet10/narrow backbone.width=8 detector=msp $quick"
run() { python -m outlie.cli "$@" > /dev/null; }
teacher() { run train experiment=digits_ood detector=msp $quick; ls -d $out/train/digits_ood-msp-* | head -1; }
t=$(teacher)
run eval run=$t "$scores" $quick
run train experiment=digits_ood $student
for seed in 0 1 2; do
  run train experiment=digits_ood $student seed=$seed
  for arm in hinton 'hinton distiller.temperature=1' 'hinton distiller.temperature=10' hinton/energy fitnet/soft_labels attention/soft_labels; do
    run distill teacher=$t $student seed=$seed distiller=$arm
  done
done
for folder in $out/train/* $out/distill/*; do run eval run=$folder "$scores" $quick; done
