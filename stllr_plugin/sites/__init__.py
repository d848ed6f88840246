"""Sites: the places in a model where the learner sits, and what it does around one call of a synapse or of a neuron."""

from stllr_plugin.sites.lift import LiftGuard
from stllr_plugin.sites.neuron import NeuronSite
from stllr_plugin.sites.synapse import ModuleSite, OwnWeightSite, SynapseSite

__all__ = ["LiftGuard", "ModuleSite", "NeuronSite", "OwnWeightSite", "SynapseSite"]
