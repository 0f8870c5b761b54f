// Which device a command computes on, and why.
#pragma once
#include <string>

#include "autograd/dtype.h"

namespace sinkhorn {

struct ChosenDevice {
  Device device = Device::cpu;
  std::string why;  // cpu: "no GPU: this build has no CUDA", empty if the user chose it; cuda: the GPU's name
};

/// `name` is auto, cpu or cuda. Throws DeviceError if cuda was asked for and cannot be used.
ChosenDevice choose_device(const std::string& name);

}  // namespace sinkhorn
