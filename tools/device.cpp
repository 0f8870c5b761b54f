#include "tools/device.h"

#include "cuda/device.h"

namespace sinkhorn {

ChosenDevice choose_device(const std::string& name) {
  if (name == "cpu") return {};
  const cuda::Probe probe = cuda::probe();
  if (!probe.devices.empty()) return {Device::cuda, probe.devices.front().name};
  const std::string why = "no GPU: " + probe.reason;
  if (name == "cuda") fail<DeviceError>("--device cuda: ", why, "; use --device cpu");
  return {Device::cpu, why};
}

}  // namespace sinkhorn
