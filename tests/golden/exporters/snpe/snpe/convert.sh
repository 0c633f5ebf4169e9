#!/bin/sh
# Turns model.onnx and model.encodings into a quantized DLC. Run it here, in a shell in which the
# Qualcomm Neural Processing SDK is set up. The batch size must be 1 to quantize.
set -e
snpe-onnx-to-dlc \
    --input_network model.onnx \
    --input_dim x 1,3,8,8 \
    --quantization_overrides model.encodings \
    --output_path model_float.dlc
# Every range comes from model.encodings; --override_params makes the tool keep them. It wants an input
# all the same: input_list.txt names one raw float32 file in the layout that snpe-dlc-info shows.
snpe-dlc-quantize \
    --input_dlc model_float.dlc \
    --input_list input_list.txt \
    --override_params \
    --bias_bitwidth 32 \
    --output_dlc model.dlc
