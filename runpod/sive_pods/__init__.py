"""Pods: rented machines with a GPU, and the template they are rented by."""

from sive_pods.template import Gpu, NetworkVolume, PodTemplate, create_body, read_template

__all__ = ["Gpu", "NetworkVolume", "PodTemplate", "create_body", "read_template"]
