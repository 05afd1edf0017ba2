"""The root of every command's settings."""

from openrlhf.config.chat_settings import ChatConfig
from openrlhf.config.estimate_settings import EstimateConfig
from openrlhf.config.generate_settings import GenerateConfig
from openrlhf.config.hub_settings import PushConfig
from openrlhf.config.iterate_settings import RejectionConfig
from openrlhf.config.merge_settings import MergeConfig
from openrlhf.config.pair_settings import DPOConfig, InspectDPOConfig, InspectRMConfig, RMConfig
from openrlhf.config.select_settings import ScoreConfig, SelectConfig
from openrlhf.config.serve_settings import ServeConfig
from openrlhf.config.settings import InspectConfig, PrepareConfig, SFTConfig

AnyInspection = InspectConfig | InspectDPOConfig | InspectRMConfig
INSPECTIONS: tuple[type[AnyInspection], ...] = (InspectConfig, InspectDPOConfig, InspectRMConfig)
STAGES = (GenerateConfig, ScoreConfig, SelectConfig, RejectionConfig)
ROOTS = (
    *INSPECTIONS,
    PrepareConfig,
    SFTConfig,
    RMConfig,
    DPOConfig,
    *STAGES,
    ServeConfig,
    PushConfig,
    MergeConfig,
    ChatConfig,
    EstimateConfig,
)
